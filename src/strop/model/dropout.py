"""Dropout off: log-probabilities must not depend on a draw."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

_MODULES = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_NAMES = ("dropout", "_drop", "pdrop", "layerdrop", "dropout_prob")


def disable_dropout(model: nn.Module) -> nn.Module:
    """Set every dropout probability of the model to 0: modules (LoRA's too), attention weights, layer drop.

    A router's jitter (`router_jitter_noise`) is not dropout and stays: some architectures route by it in evaluation
    too.

    Also in its config, because some architectures read it there at every step. A policy that samples with dropout off
    and trains with it on is another policy: importance ratios start away from 1, the reference's KL away from 0.

    Returns:
        The same model.
    """
    for module in model.modules():
        if isinstance(module, _MODULES):
            module.p = 0.0
        for name, value in vars(module).items():
            if isinstance(value, float) and name.endswith(_NAMES):
                setattr(module, name, 0.0)
        config = vars(module).get("config")
        if config is not None:
            _clear(config)
    return model


def _clear(config: Any) -> None:
    for name, value in list(vars(config).items()):
        if isinstance(value, float) and name.endswith(_NAMES):
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
