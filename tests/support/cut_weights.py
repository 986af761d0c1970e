"""Weights as ZeRO-3 leaves them between two passes, with a stand-in for DeepSpeed that gathers them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch import nn


def cut_weights(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> dict[int, torch.Tensor]:
    """Empty a model in place; its weights, by the id of the parameter, are where `GatheredParameters` looks."""
    weights = {id(p): p.detach().clone() for p in model.parameters()}
    for number, parameter in enumerate(model.parameters()):
        parameter.ds_id, parameter.ds_numel, parameter.ds_tensor = number, parameter.numel(), parameter.detach()[:1]
        parameter.ds_status = SimpleNamespace(name="NOT_AVAILABLE")
        parameter.data = torch.empty(0)

    @contextmanager
    def gathered(parameters: Iterable[nn.Parameter], modifier_rank: int | None = None) -> Iterator[None]:
        for parameter in parameters:
            parameter.data = weights[id(parameter)].clone()
        yield
        for parameter in parameters:
            if modifier_rank == 0:
                weights[id(parameter)] = parameter.detach().clone()
            parameter.data = torch.empty(0)

    ns = SimpleNamespace(GatheredParameters=gathered)
    monkeypatch.setitem(sys.modules, "deepspeed", SimpleNamespace(zero=ns, __spec__=ns))
    return weights
