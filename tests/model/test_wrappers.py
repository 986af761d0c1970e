"""Wrappers peeled off down to the transformers model."""

from __future__ import annotations

import pytest
import torch

from strop.errors import SetupError
from strop.model import apply_peft, base_model, decoder_of, is_peft, unwrap
from strop.testing.tiny import tiny_model


def test_unwrapping() -> None:
    model = tiny_model("llama")
    policy = apply_peft(model, {"r": 2, "target_modules": ["q_proj"]})
    parallel = torch.nn.DataParallel(policy)
    assert unwrap(parallel) is policy and unwrap(model) is model
    assert base_model(parallel) is model
    assert is_peft(policy) and not is_peft(model)
    compiled = torch.nn.Module()
    compiled._orig_mod = model
    compiled.__class__ = type(
        "OptimizedModule", (torch.nn.Module,), {}
    )  # torch.compile's, which takes seconds to import
    assert unwrap(compiled) is model
    assert decoder_of(model) is model.model


def test_refusals() -> None:
    with pytest.raises(SetupError, match="not a transformers model"):
        base_model(torch.nn.Linear(1, 1))
