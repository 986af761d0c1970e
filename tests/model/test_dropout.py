"""Dropout off everywhere, and modes restored."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from strop.model.dropout import disable_dropout, evaluating
from strop.testing.tiny import tiny_model

SETTINGS = {
    "llama": {"attention_dropout": 0.5},
    "gpt2": {"attn_pdrop": 0.5, "resid_pdrop": 0.5, "embd_pdrop": 0.5},
    "opt": {"dropout": 0.5, "attention_dropout": 0.5, "layerdrop": 0.5},
    "bloom": {"hidden_dropout": 0.5, "attention_dropout": 0.5},
    "gemma2": {"attention_dropout": 0.5},
}


@pytest.mark.parametrize("arch", sorted(SETTINGS))
def test_training_is_deterministic_without_dropout(arch: str) -> None:
    model = tiny_model(arch, **SETTINGS[arch])
    ids = torch.arange(3, 13)[None]
    exact = model(input_ids=ids).logits
    model.train()
    assert not torch.allclose(model(input_ids=ids).logits, exact, atol=1e-3)
    assert disable_dropout(model) is model
    for _ in range(3):
        assert torch.equal(model(input_ids=ids).logits, exact)


def test_modes_are_restored_one_by_one() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout(), nn.Dropout()))
    model[1][0].eval()
    before = [module.training for module in model.modules()]
    with pytest.raises(ZeroDivisionError), evaluating(model):
        assert not any(module.training for module in model.modules())
        raise ZeroDivisionError
    assert [module.training for module in model.modules()] == before


def test_a_routers_jitter_is_not_dropout() -> None:
    model = tiny_model("llama", router_jitter_noise=0.01, attention_dropout=0.5)
    model.model.jitter_noise = 0.01
    disable_dropout(model)
    assert (model.config.router_jitter_noise, model.model.jitter_noise) == (0.01, 0.01)
    assert model.config.attention_dropout == 0.0
