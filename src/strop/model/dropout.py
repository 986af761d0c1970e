"""Dropout off: log-probabilities must not depend on a draw."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

_MODULES = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def disable_dropout(model: nn.Module) -> nn.Module:
    """Set every dropout probability of the model to 0: modules (LoRA's too), attention weights, layer drop.

    What draws a router's jitter, or its experts (PhiMoE), in training mode does for good as in evaluation. The jitter
    itself stays (`router_jitter_noise`): some architectures route by it in evaluation too.

    Also in its config, because some architectures read it there at every step; `dropout_in_config` brings it back for
    saving. A policy that samples with dropout off and trains with it on is another policy: importance ratios start
    away from 1, the reference's KL away from 0.

    Returns:
        The same model.
    """
    cleared: list[tuple[Any, str, float]] = []
    for module in model.modules():
        if isinstance(module, _MODULES):
            module.p = 0.0
        for name in _probabilities(module):
            setattr(module, name, 0.0)
        if any("jitter" in name and isinstance(value, float) and value > 0 for name, value in vars(module).items()):
            module.train = functools.partial(_evaluates, module)  # type: ignore[method-assign]
            module.training = False
        config = vars(module).get("config")
        for name in _probabilities(config):
            cleared.append((config, name, getattr(config, name)))
            setattr(config, name, 0.0)
    model._strop_dropout = [*vars(model).get("_strop_dropout", ()), *cleared]  # type: ignore[assignment]
    return model


def _evaluates(module: nn.Module, mode: bool = True) -> nn.Module:
    """`train` of a module that stays in evaluation mode; what is inside takes the mode."""
    for child in module.children():
        child.train(mode)
    return module


def _probabilities(owner: Any) -> list[str]:
    """Names of the dropout probabilities above 0 that a module or config holds itself."""
    fields = vars(owner) if hasattr(owner, "__dict__") else {}
    return [name for name, value in fields.items() if "drop" in name and isinstance(value, float) and value > 0]


@contextmanager
def dropout_in_config(model: nn.Module) -> Iterator[None]:
    """The configs of the model as they were before `disable_dropout`, inside the block: what is saved."""
    cleared = [entry for module in model.modules() for entry in vars(module).get("_strop_dropout", ())]
    for config, name, value in cleared:
        setattr(config, name, value)
    try:
        yield
    finally:
        for config, name, _ in cleared:
            setattr(config, name, 0.0)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; afterwards every module has the mode it had."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training
