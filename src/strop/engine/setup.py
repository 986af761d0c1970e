"""Everything that happens once, before the first step: arguments, config, model, tokenizer, reference, rows.

Nothing expensive starts before cheap checks have passed: config, then tokenizer and rows, then the model.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, ProgressCallback, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback
from transformers.training_args import ParallelMode

from strop.engine import rows
from strop.engine.heap import KeptHeap
from strop.engine.metrics import LastWindow
from strop.errors import ConfigError, SetupError, did_you_mean
from strop.model import (
    apply_peft,
    base_model,
    disable_dropout,
    install,
    is_peft,
    keep_differentiable,
    load_model,
    load_tokenizer,
    make_reference,
    with_head,
)
from strop.records import Batch, LossOutput, Mean, Scores, Term
from strop.settings.config import TrainerConfig
from strop.settings.prerequisites import default_of
from strop.watch.alarms import Alarms
from strop.watch.progress import ProgressDisplay
from strop.watch.run_directory import RunDirectory
from strop.watch.stop_signals import StopSignals

KEYWORD_ALIASES = {"tokenizer": "processing_class"}
REMOVED_KEYWORDS = {
    "preprocess_logits_for_metrics": "Evaluation keeps no logits; compute_metrics gets the method's predictions.",
    "compute_loss_func": "Subclass the trainer and override loss(scores, batch, step).",
    "model_adapter_name": "The reference is the adapter as it was at the start; nothing needs a name.",
    "ref_adapter_name": "The reference is the adapter as it was at the start; nothing needs a name.",
    "config": "Pass the settings as args=.",
    "policy": "Pass the model as model=.",
    "ref_policy": "Pass the reference as ref_model=.",
    "reward_kwargs": "A reward function gets the columns of the rows; bind anything else with functools.partial.",
}


@dataclass
class Parts:
    """What the constructor of a trainer resolved."""

    model: Any
    tokenizer: Any
    reference: Any
    train_dataset: Any
    eval_dataset: Any
    reports: dict[str, Any]


def resolve_arguments(trainer_class: type, extra: dict[str, Any], **known: Any) -> dict[str, Any]:
    """Take in aliases of constructor arguments; refuse the rest with the nearest name."""
    problems = []
    for name, value in extra.items():
        if name in KEYWORD_ALIASES:
            if known.get(KEYWORD_ALIASES[name]) is not None:
                problems.append(f"{name} is another name of {KEYWORD_ALIASES[name]}, and both are given; keep one.")
            known[KEYWORD_ALIASES[name]] = value
        elif name in REMOVED_KEYWORDS:
            if value is not None:
                problems.append(f"{name} is not used. {REMOVED_KEYWORDS[name]}")
        else:
            accepted = (
                "model",
                "args",
                "train_dataset",
                "eval_dataset",
                "processing_class",
                "peft_config",
                "ref_model",
                "callbacks",
            )
            problems.append(
                f"{name} is not an argument of {trainer_class.__name__}."
                f"{did_you_mean(name, [*accepted, *KEYWORD_ALIASES])}"
            )
    if known.get("data_collator") is not None:
        problems.append("data_collator: rows become trees of tokens, which no collator can make. Remove it.")
    if problems:
        raise ConfigError.collect(f"{trainer_class.__name__} cannot be made from these arguments:", problems)
    return known


def resolve_config(config_class: type[TrainerConfig], args: Any) -> Any:
    """The method's config: as given, the default, or made from plain `TrainingArguments`."""
    if args is None:
        return config_class()
    if isinstance(args, config_class):
        return args
    if isinstance(args, TrainingArguments) and not isinstance(args, TrainerConfig):
        return config_from_plain(config_class, args)
    raise ConfigError(f"args is a {type(args).__name__}; this trainer needs a {config_class.__name__}.")


def config_from_plain(config_class: type[TrainerConfig], args: TrainingArguments) -> Any:
    """The method's config from plain `TrainingArguments`, all of whose values count as given: an instance does not tell
    which of them were written. Where one is transformers' default, and not the method's, a line says so."""
    theirs = {f.name: f for f in dataclasses.fields(TrainingArguments) if f.init}
    own = {f.name: default_of(f) for f in dataclasses.fields(config_class)}
    values = {
        name: getattr(args, name)
        for name, f in theirs.items()
        if name not in config_class.unused or getattr(args, name) != default_of(f)
    }
    differ = [
        f"{name}={value!r} ({config_class.__name__}: {own[name]!r})"
        for name, value in values.items()
        if value == default_of(theirs[name]) != own[name] and name != "output_dir"
    ]
    if differ and args.process_index == 0:
        print(f"TrainingArguments: all values count as given, so {', '.join(differ)}", flush=True)
    return config_class(**values)


def resolve_parts(
    trainer: Any,
    args: Any,
    model: Any,
    tokenizer: Any,
    train_dataset: Any,
    eval_dataset: Any,
    model_init: Any,
    *,
    quantization_config: Any,
    peft_config: Any,
    ref_model: Any,
) -> Parts:
    """Tokenizer, then rows, then the model and its reference."""
    if model is None and model_init is None:
        raise ConfigError(f"{type(trainer).__name__} needs a model: an id, a path, or a module. Pass model=...")
    if args.fsdp and args.parallel_mode != ParallelMode.DISTRIBUTED:
        raise ConfigError("fsdp shards a model over processes, and there is one; start with torchrun or remove fsdp.")
    set_seed(args.seed)  # fresh heads and adapters are drawn below, before the parent sets the seed
    if isinstance(model, TrainingArguments) or isinstance(ref_model, TrainingArguments):
        raise ConfigError(f"{type(trainer).__name__} was given settings in the place of a model; pass them as args=...")
    if model is None and tokenizer is None:
        model = model_init()  # it names the tokenizer
    trainer.args = args
    if ref_model is not None and not trainer.uses_reference:
        weight = " while beta is 0" if getattr(args, "beta", None) == 0 else ""
        raise ConfigError(f"{type(trainer).__name__} compares with no reference{weight}; remove ref_model.")
    tokenizer = resolve_tokenizer(args, model, tokenizer)
    trainer.tokenizer_in_setup, trainer.reports = tokenizer, {}
    trainer.model_facts = rows.model_facts(model, tokenizer)
    train, evaluation = rows.prepare_all(trainer, train_dataset, eval_dataset)
    check_stream(args, train)
    model = model_init() if model is None else model
    model = resolve_model(args, model, trainer.task, quantization_config, peft_config)
    if len(tokenizer) > (size := model.get_input_embeddings().num_embeddings):
        raise SetupError(
            f"The tokenizer has {len(tokenizer)} tokens, but the model embeds {size}. Use the model's own "
            f"tokenizer, or "
            "call model.resize_token_embeddings(len(tokenizer)) first."
        )
    reference = None
    if trainer.uses_reference:
        other = (
            resolve_model(args, ref_model, "causal", quantization_config, None, trainable=False)
            if ref_model is not None
            else None
        )
        reference = make_reference(model, other, syncs=getattr(args, "sync_ref_model", False))
    return Parts(trainer.complete_model(model), tokenizer, reference, train, evaluation, trainer.reports)


def check_stream(args: Any, dataset: Any) -> None:
    """Refuse what needs the end of the rows where they come from a stream."""
    if dataset is None or hasattr(dataset, "__len__"):
        return
    problems = [
        f"{name}='epoch': it has no epochs. Set {name}='steps', and how many."
        for name in ("eval_strategy", "save_strategy", "logging_strategy")
        if getattr(args, name) == "epoch"
    ]
    if getattr(args, "precompute_ref_log_probs", False):
        problems.append("precompute_ref_log_probs=True: it cannot be scored ahead. Remove it; scores are remembered.")
    if problems:
        raise ConfigError.collect("The rows come from a stream, whose end nobody knows:", problems)


def resolve_tokenizer(args: Any, model: Any, tokenizer: Any) -> Any:
    """The tokenizer given, or the model's; with the config's EOS, PAD and chat template."""
    if tokenizer is None:
        source = (
            model if isinstance(model, (str, Path)) else getattr(getattr(model, "config", None), "name_or_path", "")
        )
        if not source:
            raise ConfigError("The model was made in code and names no tokenizer. Pass processing_class=tokenizer.")
        tokenizer = load_tokenizer(source, trust_remote_code=args.trust_remote_code)
    elif isinstance(tokenizer, (str, Path)):
        tokenizer = load_tokenizer(tokenizer, trust_remote_code=args.trust_remote_code)
    for attribute, token in (("eos_token", args.eos_token), ("pad_token", args.pad_token)):
        if token is None:
            continue
        if tokenizer.convert_tokens_to_ids(token) in (None, tokenizer.unk_token_id):
            raise ConfigError(f"{attribute}={token!r} is not in the tokenizer's vocabulary.")
        setattr(tokenizer, attribute, token)
    if args.chat_template_path is not None:
        tokenizer.chat_template = read_chat_template(args.chat_template_path)
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def read_chat_template(path: str) -> str:
    """A jinja file, or the template of a tokenizer's folder."""
    if Path(path).is_file():
        return Path(path).read_text(encoding="utf-8")
    if Path(path).is_dir():
        template = load_tokenizer(path).chat_template
        if template:
            return template
    raise ConfigError(
        f"chat_template_path={path!r} is neither a jinja file nor a folder with a tokenizer that has a template."
    )


def resolve_model(
    args: Any,
    model: Any,
    task: str,
    quantization_config: Any,
    peft_config: Any,
    *,
    trainable: bool = True,
    init_kwargs: dict[str, Any] | None = None,
) -> Any:
    """The module to train: loaded if named, with the head of its task, adapters added, dropout off if asked for."""
    options = args.model_init_kwargs if init_kwargs is None else init_kwargs
    options = json.loads(options) if isinstance(options, str) else dict(options or {})
    module = load_model(
        model,
        task=task,
        quantization_config=quantization_config,
        trust_remote_code=args.trust_remote_code,
        model_init_kwargs=options,
        trainable=trainable and peft_config is None,
    )
    if not isinstance(module, torch.nn.Module):
        raise ConfigError(f"model is a {type(model).__name__}; pass an id, a path, or a torch module.")
    if task != "causal":
        module = headed(module, task)
    if peft_config is not None:
        module = apply_peft(module, spare_head(peft_config) if task != "causal" else peft_config)
    keep_differentiable(module)
    install(module)  # before anything wraps the model's forward, so that autocast surrounds scoring too
    if args.disable_dropout:
        disable_dropout(module)
    if (
        args.gradient_checkpointing  # the name that every supported transformers has
        and isinstance(module, PreTrainedModel) is False
        and hasattr(module, "enable_input_require_grads")
    ):
        module.enable_input_require_grads()
    return module


def headed(module: torch.nn.Module, task: str) -> torch.nn.Module:
    """A language model given as a module gets a fresh head on a copy of its layers; one with a head is left as it
    is."""
    inner = base_model(module)
    if any(hasattr(inner, name) for name in ("score", "classifier", "v_head")) or inner.get_output_embeddings() is None:
        return module
    if is_peft(module):
        raise ConfigError(
            f"This adapter sits on a {type(inner).__name__}, which has no {task} head. Pass the base model, and the "
            f"adapter "
            "as peft_config; or merge the adapter first (model.merge_and_unload())."
        )
    return with_head(module, task)


def spare_head(peft_config: Any) -> Any:
    """The adapter's config with the task head left out of "all-linear": the head is trained whole, and saved."""
    if getattr(peft_config, "target_modules", None) != "all-linear" or peft_config.exclude_modules:
        return peft_config
    return dataclasses.replace(peft_config, exclude_modules=["score", "classifier"])


def default_callbacks(args: Any) -> list[Any]:
    on_cpu = [KeptHeap()] if args.device.type == "cpu" else []
    return [RunDirectory(), Alarms(), LastWindow(), StopSignals(), *on_cpu]


def evaluation_callbacks(trainer: Any) -> list[Any]:
    """What `generate_during_eval` asks for.

    Raises:
        ConfigError: the trainer's class has nothing that samples.
    """
    if not trainer.args.generate_during_eval:
        return []
    make = type(trainer).evaluation_samples
    if make is None:
        raise ConfigError(
            f"generate_during_eval=True, but {type(trainer).__name__} samples nothing. Remove it, or set "
            "`evaluation_samples = EvaluationSamples` (strop.online.evaluation_samples) in the class."
        )
    return [make(trainer)]


def replace_progress(trainer: Any) -> None:
    """strop's own progress display (or the user's) instead of the parent's; callbacks that need it get the trainer."""
    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    if not any(isinstance(callback, ProgressDisplay) for callback in trainer.callback_handler.callbacks):
        trainer.add_callback(ProgressDisplay())
    trainer.run_directory = next(c for c in trainer.callback_handler.callbacks if isinstance(c, RunDirectory))
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, (RunDirectory, Alarms, StopSignals)):
            callback.trainer = trainer


def check_layout(trainer: Any) -> None:
    """Refuse to pad where the user insists on no padding."""
    if trainer.args.padding_free and trainer.args.layout == "auto" and trainer.layout.name == "padded":
        raise SetupError(f"padding_free=True, but this model can only be scored with padding: {trainer.layout.reason}")


def add_router_loss(coef: float, scores: Scores, output: LossOutput, batch: Batch) -> None:
    """The load-balancing loss of mixture-of-experts models as one more term, weighted by the tokens of each
    micro-batch."""
    if coef and scores.aux_loss is not None:
        tokens = float(sum(example.num_tokens for example in batch.examples))
        output.terms.append(Term((scores.aux_loss * tokens).view(1), "num_tokens", coef))
        output.metrics["aux_loss"] = Mean(scores.aux_loss.detach() * tokens, tokens)
