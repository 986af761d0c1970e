"""From what a trainer holds to the language model inside: DDP, FSDP, DeepSpeed, torch.compile and PEFT peeled off."""

from __future__ import annotations

import sys
from typing import Any

from torch import nn

from strop.errors import SetupError

_INNER = {
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "FullyShardedDataParallel": "module",
    "DeepSpeedEngine": "module",
    "OptimizedModule": "_orig_mod",
}


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside wrappers that only distribute or compile; a PEFT model stays one."""
    while (name := _INNER.get(type(model).__name__)) is not None:
        model = getattr(model, name)
    return model


def is_compiled(module: nn.Module) -> bool:
    """Whether a call of this very module is compiled, by `torch.compile(module)` or `module.compile()`."""
    return type(module).__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None


def uncompiled(model: nn.Module) -> nn.Module:
    """The same weights with no part compiled: what is compiled for one shape of input is not for flat rows."""
    if not any(map(is_compiled, model.modules())):
        return model
    model = unwrap(model)
    for module in list(model.modules()):
        module._compiled_call_impl = None
        for name, child in module.named_children():
            setattr(module, name, unwrap(child))
    return model


def is_peft(model: nn.Module) -> bool:
    """Whether the (unwrapped) model is a `peft.PeftModel`; does not import peft."""
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(model, peft.PeftModel)


def base_model(model: nn.Module) -> Any:
    """The transformers model inside all wrappers, adapter layers in place.

    Raises:
        SetupError: not a transformers model.
    """
    model = unwrap(model)
    if is_peft(model):
        model = unwrap(model.get_base_model())  # type: ignore[union-attr,operator]
    if not (hasattr(model, "get_decoder") and hasattr(model, "config")):
        raise SetupError(
            f"{type(model).__name__} is not a transformers model, so strop cannot tell its layers from its head. "
            "Pass a PreTrainedModel, a hub id or a folder."
        )
    return model


def decoder_of(model: Any) -> nn.Module:
    """The stack of layers of a transformers model, whose output is the last hidden state.

    A few text models know no decoder and name themselves, or an output layer that is called so.
    """
    found = model.get_decoder()
    if found is model or not hasattr(found, "config"):
        stacks = [child for child in model.children() if hasattr(child, "get_decoder")]
        return stacks[0] if len(stacks) == 1 else found
    return found


def check_decoder_only(config: Any, name: str) -> None:
    """Refuse what reads a prompt with an encoder of its own.

    Raises:
        SetupError: the config is an encoder-decoder's.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise SetupError(
            f"{name} is an encoder-decoder; strop trains decoder-only language models. Choose a causal language model."
        )
