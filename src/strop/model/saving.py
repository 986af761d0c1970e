"""A model as it is to be saved: what a run changed for its own sake is put back inside the block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from strop.model.dropout import dropout_in_config


@contextmanager
def as_to_save(model: nn.Module) -> Iterator[None]:
    """Dropout as its config had it, and weights as they are trained (RWKV divides some in evaluation)."""
    for module in model.modules():
        if vars(module).get("layers_are_rescaled"):
            _unscale(module)
    with dropout_in_config(model):
        yield


def _unscale(module: Any) -> None:
    """The next forward pass divides them again, if it is one of evaluation."""
    training, module.training = module.training, True
    module._rescale_layers()
    module.training = training
