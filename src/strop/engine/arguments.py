"""Arguments of a trainer's constructor: aliases taken in, what is not used refused, the config found or made."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from transformers import TrainingArguments

from strop.errors import ConfigError, did_you_mean
from strop.model import is_peft
from strop.settings.config import TrainerConfig
from strop.settings.prerequisites import default_of

KEYWORDS = (
    "model", "args", "train_dataset", "eval_dataset", "processing_class", "peft_config", "ref_model", "callbacks",
)  # fmt: skip
KEYWORD_ALIASES = {"tokenizer": "processing_class"}
REMOVED_KEYWORDS = {
    "preprocess_logits_for_metrics": "Evaluation keeps no logits; compute_metrics gets the method's predictions.",
    "compute_loss_func": "Subclass the trainer and override loss(scores, batch, step).",
    "model_adapter_name": "Name the adapter in the settings: args=...Config(model_adapter_name=...).",
    "ref_adapter_name": "Name the adapter in the settings: args=...Config(ref_adapter_name=...).",
    "config": "Pass the settings as args=.",
    "policy": "Pass the model as model=.",
    "ref_policy": "Pass the reference as ref_model=.",
    "reward_kwargs": "A reward function gets the columns of the rows; bind anything else with functools.partial.",
}


def resolve_arguments(trainer_class: Any, args: Any, extra: dict[str, Any], **known: Any) -> tuple[dict[str, Any], Any]:
    """Take in aliases of constructor arguments, and find the config; refuse the rest with the nearest name.

    Settings that trainers of earlier releases took themselves (`max_seq_length=512`) are taken where `args` is no
    config of the method, whose own setting they would contradict.
    """
    trainer, config_class = trainer_class.__name__, trainer_class.config_class
    problems, settings = [], {}
    for name, value in extra.items():
        if name in KEYWORD_ALIASES:
            if known.get(KEYWORD_ALIASES[name]) is not None:
                problems.append(f"{name} is another name of {KEYWORD_ALIASES[name]}, and both are given; keep one.")
            known[KEYWORD_ALIASES[name]] = value
        elif name in REMOVED_KEYWORDS:
            if value is not None:
                problems.append(f"{name} is not used. {REMOVED_KEYWORDS[name]}")
        elif name not in settings_of(config_class) and name not in config_class.removed:
            problems.append(
                f"{name} is not an argument of {trainer}.{did_you_mean(name, [*KEYWORDS, *KEYWORD_ALIASES])}"
            )
        elif isinstance(args, config_class):
            problems.append(f"{name} is a setting: args={config_class.__name__}({name}={value!r:.60}).")
        else:
            settings[name] = value
    if known.get("data_collator") is not None:
        problems.append("data_collator: rows become trees of tokens, which no collator can make. Remove it.")
    if problems:
        raise ConfigError.collect(f"{trainer} cannot be made from these arguments:", problems)
    return known, resolve_config(config_class, args, settings)


def take_settings(config_class: type[TrainerConfig], args: Any, extra: dict[str, Any]) -> dict[str, Any]:
    """The settings among a constructor's arguments, taken out of them: for a trainer that needs its config early."""
    if isinstance(args, config_class):
        return {}
    known = settings_of(config_class).difference(REMOVED_KEYWORDS)
    return {name: extra.pop(name) for name in known.intersection(extra)}


def settings_of(config_class: type[TrainerConfig]) -> set[str]:
    """The names of a config's fields, and their other names."""
    return {f.name for f in dataclasses.fields(config_class) if f.init}.union(config_class.aliases)


def resolve_config(
    config_class: type[TrainerConfig], args: Any, settings: Mapping[str, Any] = MappingProxyType({})
) -> Any:
    """The method's config: as given; or the default or plain `TrainingArguments`, with `settings` beside."""
    if args is None:
        return config_class(**settings)
    if isinstance(args, config_class):
        return args
    if isinstance(args, TrainingArguments) and not isinstance(args, TrainerConfig):
        return config_from_plain(config_class, args, settings)
    raise ConfigError(f"args is a {type(args).__name__}; this trainer needs a {config_class.__name__}.")


ADAPTER_FACTOR, ADAPTER_MOST = 10, 2e-4


def adapter_learning_rate(args: TrainerConfig, model: Any) -> str:
    """Where nobody named a learning rate: set that of adapters, if the model has one; returns what to say.

    An adapter wants about ten times the rate of full training (Schulman et al. 2025, LoRA Without Regret), and the
    2e-4 of QLoRA (arXiv 2305.14314) is the most that is taken without being asked for. The settings may have served
    another trainer before.
    """
    default = next(default_of(f) for f in dataclasses.fields(args) if f.name == "learning_rate")
    rate = min(ADAPTER_FACTOR * default, max(default, ADAPTER_MOST))
    if "learning_rate" in args.given or args.learning_rate not in (default, rate):
        return ""
    adapted = is_peft(getattr(model, "policy", model))
    args.__dict__["learning_rate"] = rate if adapted else default  # which nobody named
    if not adapted or rate == default:
        return ""
    return (
        f"learning_rate {rate:g}, for an adapter: ten times the {default:g} of full training, at most {ADAPTER_MOST:g} "
        "(LoRA Without Regret, 2025; QLoRA, arXiv 2305.14314). Set learning_rate to choose another."
    )


def config_from_plain(config_class: type[TrainerConfig], args: TrainingArguments, settings: Mapping[str, Any]) -> Any:
    """The method's config from plain `TrainingArguments`, all of whose values count as given (an instance does not tell
    which of them were written), and from `settings` that were given beside them. Where a value is
    transformers' default, and not the method's, a line says so."""
    theirs = {f.name: f for f in dataclasses.fields(TrainingArguments) if f.init}
    own = {f.name: default_of(f) for f in dataclasses.fields(config_class)}
    values = {
        name: getattr(args, name)
        for name, f in theirs.items()
        if name not in settings and (name not in config_class.unused or getattr(args, name) != default_of(f))
    }
    differ = [
        f"{name}={value!r} ({config_class.__name__}: {own[name]!r})"
        for name, value in values.items()
        if value == default_of(theirs[name]) != own[name] and name != "output_dir"
    ]
    if differ and args.process_index == 0:
        print(f"TrainingArguments: all values count as given, so {', '.join(differ)}", flush=True)
    return config_class(**values, **settings)
