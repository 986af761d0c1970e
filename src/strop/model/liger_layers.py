"""Liger's kernels for parts of a layer (norms, rotations, gates) in the place of transformers' own: `use_liger_kernel`.

The package patches a model by its architecture, through transformers. Its losses are left out: they stand where strop's
head is, and would compute logits that no method asks for. Beside the model it replaces names of the architecture's
module, for models that are made later. Those are put back, because not all of them are on a card (the twins that a
layout is tried on are not); what a layer looks up there at every call, the rotation, then chooses by where its tensors
are.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from strop.errors import SetupError
from strop.model.wrappers import base_model

LOSSES = ("cross_entropy", "fused_linear_cross_entropy")
"""Liger's kernels that are no part of a layer."""


def missing_liger() -> str:
    """Why there are no kernels of Liger's here; "" where there are."""
    from transformers.utils import is_liger_kernel_available

    if not is_liger_kernel_available():
        return "the package liger-kernel is not installed: pip install liger-kernel"
    if not torch.cuda.is_available() and not interpreted():
        return "its kernels run on a card, and there is none"
    return ""


def interpreted() -> bool:
    """Whether Triton runs kernels on a CPU, step by step, as tests do."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def put_liger_layers(model: nn.Module, chosen: Mapping[str, bool] | None = None) -> Callable[[], None]:
    """Put Liger's kernels into the layers of a model in place.

    Args:
        model: a transformers model on its device, an adapter on it or not.
        chosen: which of the kernels, by Liger's names; None: all that the architecture has.

    Returns:
        What takes them out again.

    Raises:
        SetupError: Liger has none for this architecture.
    """
    from transformers.integrations.liger import apply_liger_kernel

    inner = base_model(model)
    modules = {module: dict(vars(module)) for module in inner.modules()}
    sources = [sys.modules[name] for name in sorted({type(module).__module__ for module in inner.modules()})]
    names = [(source, dict(vars(source))) for source in sources if ".modeling_" in source.__name__]

    def replaced() -> list[tuple[Any, str, Any, Any]]:
        return [
            (source, name, vars(source)[name], plain)
            for source, before in names
            for name, plain in before.items()
            if vars(source)[name] is not plain
        ]

    def take_out() -> None:
        for module, before in modules.items():
            for name in [name for name in vars(module) if name not in before]:
                del vars(module)[name]
            vars(module).update(before)
        for source, name, _, plain in replaced():
            setattr(source, name, plain)

    try:
        apply_liger_kernel(inner, {**(chosen or {}), **dict.fromkeys(LOSSES, False)})
    except Exception:  # it may have changed some parts already
        take_out()
        raise
    changed = replaced()
    for source, name, fast, plain in changed:
        setattr(source, name, plain if isinstance(plain, type) else _on_a_card(fast, plain))

    if not changed and all(vars(module).keys() == before.keys() for module, before in modules.items()):
        raise SetupError(f"Liger has no kernels for {type(inner).__name__}")
    return take_out


def _on_a_card(fast: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
    """A function of tensors, the first of which says which of two computes it."""

    @functools.wraps(plain)
    def choose(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return (fast if tensor.is_cuda or interpreted() else plain)(tensor, *args, **kwargs)

    return choose
