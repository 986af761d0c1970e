"""What could not learn, or not as it was asked to, refused at construction with a sentence."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from accelerate import DistributedType
from torch import nn
from transformers import Trainer

from strop.errors import ConfigError, SetupError
from strop.model import base_model, is_peft
from strop.model.heads import scalar_head
from strop.model.wrappers import check_decoder_only

_WHAT_RUNS = {
    DistributedType.NO: "one process, with the whole model,",
    DistributedType.MULTI_CPU: "plain DDP, with the whole model in every process,",
}
"""What is started where nothing is sharded."""


def check_launch(args: Any) -> None:
    """Refuse a run that would not be spread over processes in the way it was started, or asked, to be.

    On machines without an accelerator transformers joins processes only with use_cpu, accelerate never shards by FSDP,
    and it hands over to DeepSpeed only without use_cpu.
    """
    kind = args.distributed_state.distributed_type if args.distributed_state else DistributedType.NO
    started = int(os.environ.get("WORLD_SIZE", 1))
    alone = f"{started} processes, each of them by itself," if started > 1 and args.world_size == 1 else None
    if args.deepspeed or _environment_asks("ACCELERATE_USE_DEEPSPEED"):
        if alone or kind in _WHAT_RUNS:
            raise ConfigError(
                f"DeepSpeed was asked for, but {alone or _WHAT_RUNS[kind]} would run. Start with torchrun (one process "
                "will do). On CPUs: no use_cpu, which turns it off; ddp_backend='gloo'; the environment variables "
                "DS_ACCELERATOR=cpu and ACCELERATE_USE_DEEPSPEED=true; and its settings in the file that "
                "ACCELERATE_DEEPSPEED_CONFIG_FILE names, in place of deepspeed=..., which joins no processes there."
            )
    elif alone:
        raise ConfigError(
            f"{alone} would train in {args.output_dir}: there is no accelerator here, and on CPUs processes are joined "
            "only if asked to. Set use_cpu=True."
        )
    elif kind in _WHAT_RUNS and (args.fsdp or _environment_asks("ACCELERATE_USE_FSDP")):
        raise ConfigError(
            f"FSDP was asked for, but {_WHAT_RUNS[kind]} would run: it shards over processes, and "
            "accelerate takes it on accelerators only. Start with torchrun on GPUs; on CPUs take DeepSpeed (ZeRO-3) "
            "instead, or remove fsdp (and unset ACCELERATE_USE_FSDP)."
        )


def _environment_asks(name: str) -> bool:
    return os.environ.get(name, "false").lower() in ("true", "1")


def check_optimizer_package(args: Any) -> None:
    """Refuse an `optim` whose package is not installed; transformers looks for it at the first step."""
    try:
        Trainer.get_optimizer_cls_and_kwargs(args)
    except (ImportError, ValueError) as error:  # ValueError: of settings too, and where the model is needed
        if isinstance(error, ImportError) or re.search("install|import", str(error)):
            raise SetupError(
                f"optim={str(getattr(args.optim, 'value', args.optim))!r} needs a package that is not installed "
                f"({' '.join(str(error).split())}). Install it, or take an optimizer of torch: optim='adamw_torch'."
            ) from None


def check_can_learn(model: nn.Module) -> None:
    """Refuse an encoder-decoder, quantised weights without an adapter, and an adapter that is merged or taken off.

    Raises:
        ConfigError, SetupError: which of them it is, and what to do.
    """
    inner = base_model(model)
    check_decoder_only(inner.config, type(inner).__name__)
    if is_peft(model):
        _check_adapter(model)
        return
    quantizer = getattr(inner, "hf_quantizer", None)
    if quantizer is not None and not getattr(quantizer, "is_qat_trainable", False):
        raise ConfigError(
            f"The weights of this {type(inner).__name__} are quantised and cannot move. Train an adapter beside them: "
            "peft_config=LoraConfig(r=16, target_modules='all-linear'); or load the model without quantisation."
        )


def check_head(model: nn.Module, task: str) -> None:
    """Refuse a head with another number of outputs than its task has: a score is one, a step has two."""
    inner = base_model(model)
    if task == "score":
        scalar_head(inner)
    elif task == "step" and (labels := getattr(inner.config, "num_labels", None)) != 2:
        raise ConfigError(
            f"{type(inner).__name__} has {labels} labels; a step is right or wrong. Load it with num_labels=2."
        )


def check_best_metric(args: Any, evaluation: Any) -> None:
    """Refuse a metric for the best model that no evaluation would have: those of several sets carry their names."""
    metric = args.metric_for_best_model
    if not isinstance(evaluation, Mapping) or metric is None:
        return
    name = metric.removeprefix("eval_")
    if not any(name.startswith(f"{key}_") for key in evaluation):
        choices = " or ".join(repr(f"eval_{key}_{name}") for key in evaluation)
        raise ConfigError(
            f"metric_for_best_model={metric!r}: metrics of several evaluation sets carry their names. Set {choices}."
        )


def _check_adapter(model: Any) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    if any(layer.merged for layer in layers):
        raise ConfigError(
            "The adapter is merged into the weights, so its own would not learn. Take it out again "
            "(model.unmerge_adapter()), or train the merged model: model.merge_and_unload()."
        )
    if not layers and not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(
            "This PEFT model has no adapter layers any more: unload() or merge_and_unload() took them off, and what "
            "is left is frozen. Pass what that call returned, with a peft_config for a new adapter if you want one."
        )


def check_learns(model: nn.Module) -> None:
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(
            "Every weight of the model is frozen, so nothing would learn. Load an adapter with "
            "PeftModel.from_pretrained(base, folder, is_trainable=True), pass a peft_config, or set requires_grad."
        )


def check_apart(name: str, other: nn.Module, model: nn.Module) -> None:
    """Refuse a model that is to stay as it is and shares weights with the one that is trained."""
    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    if any(id(parameter) in trained for parameter in other.parameters()):
        raise ConfigError(
            f"{name} shares weights with the model that is trained, so training would change it too. Pass a model of "
            "its own: copy.deepcopy(...), before an adapter is put into either."
        )
