"""A mixture of experts is balanced by default, with the coefficient that its own config names; 0 switches it off."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from strop.errors import ConfigError
from strop.testing.cases import make_trainer
from strop.testing.tiny import tiny_model
from strop.testing.tokenizers import toy_tokenizer


def first_loss(verb: str, folder: Path, coef: float | None, own: float = 0.5) -> dict[str, float]:
    model = tiny_model("qwen3_moe", dtype=torch.float64, seed=0, vocab_size=len(toy_tokenizer("plain")))
    model.config.router_aux_loss_coef = own
    trainer = make_trainer(verb, folder, model=model, max_steps=1, router_aux_loss_coef=coef)
    assert trainer.aux_loss_enabled == (coef != 0.0)
    trainer.train()
    return trainer.state.log_history[0]


@pytest.mark.parametrize("verb", ["sft", "ppo"])
def test_none_is_the_models_own_coefficient(verb: str, tmp_path: Path) -> None:
    off, given, default = (first_loss(verb, tmp_path, coef) for coef in (0.0, 0.5, None))
    assert "aux_loss" not in off and default["loss"] == given["loss"]
    assert default["loss"] == pytest.approx(off["loss"] + 0.5 * default["aux_loss"], abs=1e-6)


def test_a_model_without_a_router_has_no_such_loss(tmp_path: Path) -> None:
    trainer = make_trainer("sft", tmp_path, max_steps=1)
    trainer.train()
    assert "aux_loss" not in trainer.state.log_history[0] and not trainer.aux_loss_enabled
    with pytest.raises(ConfigError, match=r"router_aux_loss_coef=0\.1, but LlamaForCausalLM has no router"):
        make_trainer("sft", tmp_path, router_aux_loss_coef=0.1)
