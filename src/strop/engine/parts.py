"""The parts that a trainer is made from: tokenizer, rows, model and reference. Nothing here sees a trainer.

Nothing expensive starts before cheap checks have passed: config, then tokenizer and rows, then the model.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TrainingArguments, set_seed

from strop.data import DatasetKind, TokenizeOptions
from strop.engine import refusals
from strop.engine.rows import RowPreparation, last_tokens, model_facts, prepare_all, tokenized
from strop.errors import ConfigError, SetupError
from strop.model import (
    apply_peft,
    base_model,
    disable_dropout,
    freeze_unread_towers,
    install,
    is_peft,
    keep_differentiable,
    load_model,
    load_tokenizer,
    make_reference,
    set_scoring_pad,
    unwrap,
    with_head,
)
from strop.model.adapters import train_adapter
from strop.model.chat_tokens import Adopted, adopt_chat_tokens
from strop.model.forward import vocab_size
from strop.model.reference import check_adapter_mix
from strop.model.virtual_tokens import check_virtual_tokens, has_virtual_tokens
from strop.model.wrappers import is_compiled
from strop.model.zero3 import whole_models
from strop.rollout.rollout_mode import transformers_model
from strop.settings.config import TrainerConfig
from strop.watch.say import say


@dataclass(frozen=True)
class Facts:
    """What must be known of a method before its trainer exists."""

    name: str  # of the trainer's class
    dataset_kind: DatasetKind  # the rows it learns from
    task: str  # the head it needs: "causal", "score" or "step"
    uses_reference: bool
    samples: bool = field(default=False, kw_only=True)  # completions of the policy
    tokenize: TokenizeOptions  # how its rows become tokens
    convert: Callable[[RowPreparation, Any, str], Any] = tokenized  # (preparation, rows, name) -> examples
    complete_model: Callable[[Any], Any] = lambda model: model  # the policy -> the module that the optimizer trains


@dataclass
class Parts:
    model: Any
    tokenizer: Any
    reference: Any
    rows: RowPreparation
    train_dataset: Any
    eval_dataset: Any
    unsaid_pad: bool = False  # whether whoever loads the saved adapter must set the pad token (`ADAPTER_NOTE`)


@whole_models()
def prepare(
    args: TrainerConfig,
    model: Any,
    tokenizer: Any,
    train_dataset: Any,
    eval_dataset: Any,
    facts: Facts,
    *,
    model_init: Callable[[], Any] | None = None,
    quantization_config: Any = None,
    peft_config: Any = None,
    ref_model: Any = None,
) -> Parts:
    check_models(args, facts, model, model_init, ref_model)
    if peft_config is not None and facts.uses_reference and getattr(args, "sync_ref_model", False):
        check_adapter_mix(args.ref_model_mixup_alpha)
    set_seed(args.seed)  # fresh heads and adapters are drawn below, before the parent sets the seed
    if model is None and tokenizer is None:
        assert model_init is not None
        model = model_init()  # it names the tokenizer
    tokenizer, adopted = resolve_tokenizer(args, model, tokenizer)
    known = model_facts(model, tokenizer)
    rows, train, evaluation = prepare_rows(args, tokenizer, train_dataset, eval_dataset, facts, known)
    check_streams(args, train, evaluation)
    refusals.check_best_metric(args, evaluation)
    if model is None:
        assert model_init is not None
        model = model_init()
        if (late := model_facts(model, tokenizer)) != known:  # it alone says what ends its texts, and how far it reads
            rows, train, evaluation = prepare_rows(args, tokenizer, train_dataset, eval_dataset, facts, late)
    model = resolve_model(args, model, facts.task, quantization_config, peft_config, adopted=adopted)
    refusals.check_can_learn(model)
    if facts.samples or args.generate_during_eval:
        transformers_model(model)  # raises where nothing can be sampled
    train_adapter(model, getattr(args, "model_adapter_name", None))
    if len(tokenizer) > (size := vocab_size(model) or len(tokenizer)):
        raise SetupError(
            f"The tokenizer has {len(tokenizer)} tokens, but the model embeds {size}. Use the model's own tokenizer, "
            "or call model.resize_token_embeddings(len(tokenizer)) first."
        )
    reference = None
    if facts.uses_reference:
        other = None
        if ref_model is not None:
            other = resolve_model(
                args, ref_model, "causal", quantization_config, None, trainable=False, adopted=adopted
            )
            if unwrap(other) is not unwrap(model):  # then it is copied
                refusals.check_apart("ref_model", other, model)
        syncs, named = getattr(args, "sync_ref_model", False), getattr(args, "ref_adapter_name", None)
        reference = make_reference(model, other, syncs=syncs, adapter=named)
    unsaid = False
    if facts.task == "score":  # else no row is looked at before its step
        unsaid = set_scoring_pad(model, tokenizer, last_tokens(train, evaluation) | set(rows.options.stop_token_ids))
    return Parts(facts.complete_model(model), tokenizer, reference, rows, train, evaluation, unsaid)


def prepare_rows(
    args: TrainerConfig, tokenizer: Any, train: Any, evaluation: Any, facts: Facts, model_facts: dict[str, Any]
) -> tuple[RowPreparation, Any, Any]:
    options = dataclasses.replace(facts.tokenize, **model_facts)
    rows = RowPreparation(args, tokenizer, facts.dataset_kind, options, facts.convert)
    return rows, *prepare_all(rows, train, evaluation)


def check_models(args: TrainerConfig, facts: Facts, model: Any, model_init: Any, ref_model: Any) -> None:
    if model is None and model_init is None:
        raise ConfigError(f"{facts.name} needs a model: an id, a path, or a module. Pass model=...")
    refusals.check_launch(args)
    if isinstance(model, TrainingArguments) or isinstance(ref_model, TrainingArguments):
        raise ConfigError(f"{facts.name} was given settings in the place of a model; pass them as args=...")
    refusals.check_optimizer_package(args)
    if ref_model is not None and not facts.uses_reference:
        weight = " while beta is 0" if getattr(args, "beta", None) == 0 else ""
        raise ConfigError(f"{facts.name} compares with no reference{weight}; remove ref_model.")


def check_streams(args: Any, train: Any, evaluation: Any) -> None:
    problems = [
        f"{name}='epoch': it has no epochs. Set {name}='steps', and how many."
        for name in ("eval_strategy", "save_strategy", "logging_strategy")
        if getattr(args, name) == "epoch" and is_stream(train)
    ]
    if args.dataloader_num_workers and is_stream(train):
        problems.append(f"dataloader_num_workers={args.dataloader_num_workers}: this process reads it. Remove it.")
    evaluations = evaluation.values() if isinstance(evaluation, Mapping) else [evaluation]
    if getattr(args, "precompute_ref_log_probs", False) and any(map(is_stream, [train, *evaluations])):
        problems.append("precompute_ref_log_probs=True: it cannot be scored ahead. Remove it; scores are remembered.")
    if problems:
        raise ConfigError.collect("The rows come from a stream, whose end nobody knows:", problems)


def is_stream(dataset: Any) -> bool:
    return dataset is not None and not hasattr(dataset, "__len__")


MODEL_KEYWORDS = ("dtype", "torch_dtype", "quantization_config")
"""What scripts load a tokenizer with because they load its model so; no tokenizer could be saved with them."""


def resolve_tokenizer(args: Any, model: Any, tokenizer: Any) -> tuple[Any, Adopted | None]:
    """The tokenizer given, or the model's; with the config's EOS, PAD and chat template, and what that brought."""
    if tokenizer is None:
        source = (
            model if isinstance(model, (str, Path)) else getattr(getattr(model, "config", None), "name_or_path", "")
        )
        if not source:
            raise ConfigError("The model was made in code and names no tokenizer. Pass processing_class=tokenizer.")
        tokenizer = load_tokenizer(source, trust_remote_code=args.trust_remote_code)
    elif isinstance(tokenizer, (str, Path)):
        tokenizer = load_tokenizer(tokenizer, trust_remote_code=args.trust_remote_code)
    adopted = None if args.chat_template_path is None else take_chat_template(args, tokenizer)
    for attribute, token in (("eos_token", args.eos_token), ("pad_token", args.pad_token)):
        if token is None:
            continue
        if tokenizer.convert_tokens_to_ids(token) in (None, tokenizer.unk_token_id):
            raise ConfigError(f"{attribute}={token!r} is not in the tokenizer's vocabulary.")
        setattr(tokenizer, attribute, token)
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    for name in MODEL_KEYWORDS:
        getattr(tokenizer, "init_kwargs", {}).pop(name, None)
    return tokenizer, adopted


def take_chat_template(args: Any, tokenizer: Any) -> Adopted | None:
    """The template of a jinja file; or that of another tokenizer (a folder or hub id), with what it is written in."""
    path = args.chat_template_path
    if Path(path).is_file():
        tokenizer.chat_template = Path(path).read_text(encoding="utf-8")
        return None
    try:
        source = load_tokenizer(path, trust_remote_code=args.trust_remote_code)
    except SetupError as error:
        raise ConfigError(f"chat_template_path={path!r} is neither a jinja file nor a tokenizer: {error}") from None
    if not source.chat_template:
        raise ConfigError(f"chat_template_path={path!r}: this tokenizer has no chat template.")
    tokens = adopt_chat_tokens(tokenizer, source)
    if tokens:
        say(args, f"{path} brings {len(tokens)} tokens with its chat template: {' '.join(tokens)}")
    return Adopted(tokenizer, tokenizer.convert_tokens_to_ids(tokens))


def resolve_model(
    args: Any,
    model: Any,
    task: str,
    quantization_config: Any,
    peft_config: Any,
    *,
    trainable: bool = True,
    init_kwargs: dict[str, Any] | None = None,
    adopted: Adopted | None = None,
) -> Any:
    """The module to train: loaded if named, with the head of its task, adapters added, dropout off if asked for."""
    if isinstance(model, torch.nn.Module) and any(map(is_compiled, model.modules())):
        say(
            args,
            "The model is compiled. Rows are laid out flat, every step has another size: the module inside is used. "
            "torch_compile=True compiles its layers, for rows of any size.",
        )
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
        refusals.check_head(module, task)
    if adopted is not None:
        peft_config = adopted.fit(module, peft_config)
    if peft_config is not None:
        module = apply_peft(module, peft_config)
    if has_virtual_tokens(module):
        check_virtual_tokens(unwrap(module), args.gradient_checkpointing)
    if trainable and (towers := freeze_unread_towers(module)):
        say(args, f"Rows are text, so {', '.join(towers)} of {type(base_model(module)).__name__} are not trained.")
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
            "adapter as peft_config; or merge the adapter first (model.merge_and_unload())."
        )
    return with_head(module, task)
