"""A model as it is to be saved: what a run changed for its own sake is put back inside the block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from strop.model.dropout import dropout_in_config


@contextmanager
def as_to_save(model: nn.Module) -> Iterator[None]:
    """Dropout as its config had it, all of AdaLoRA's ranks, and weights as they are trained (RWKV divides some in
    evaluation)."""
    for module in model.modules():
        if vars(module).get("layers_are_rescaled"):
            _unscale(module)
    with dropout_in_config(model), whole_ranks(model):
        yield


@contextmanager
def whole_ranks(model: Any) -> Iterator[None]:
    """AdaLoRA's adapters are saved and loaded with all singular values, those that were not kept being zero.

    By its rank pattern PEFT would cut them away for good, and scale the others by another rank.
    """
    configs = [c for c in getattr(model, "peft_config", {}).values() if getattr(c, "peft_type", None) == "ADALORA"]
    patterns = [config.rank_pattern for config in configs]
    try:
        for config in configs:
            config.rank_pattern = None
        yield
    finally:
        for config, pattern in zip(configs, patterns, strict=True):
            config.rank_pattern = pattern


def _unscale(module: Any) -> None:
    """The next forward pass divides them again, if it is one of evaluation."""
    training, module.training = module.training, True
    module._rescale_layers()
    module.training = training
