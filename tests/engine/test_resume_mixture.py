"""Mixtures of experts come again whole from a checkpoint, though their experts lie in it under other names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from strop.errors import SetupError
from strop.model.saving import load_renamed, saved_names
from strop.testing.cases import make_trainer, rows_for
from strop.testing.tiny import tiny_model


def trainer_of(verb: str, folder: Path, **options: Any) -> Any:
    rows, settings = rows_for(verb, 4), {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, **options}
    return make_trainer(verb, folder, rows=rows, eval_rows=rows, arch="qwen3_moe", learning_rate=0.02, **settings)


def assert_same_weights(one: Any, other: Any) -> None:
    for (name, first), second in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(first, second), name


@pytest.mark.parametrize("verb", ["sft", "ppo"])
def test_a_run_that_is_gone_on_with_has_its_experts(verb: str, tmp_path: Path) -> None:
    options = {"max_completion_length": 2} if verb == "ppo" else {}
    whole = trainer_of(verb, tmp_path, **options)
    whole.train()
    assert "model.layers.0.mlp.experts.down_proj" not in saved_names(tmp_path / "checkpoint-1")
    again = trainer_of(verb, tmp_path, **options)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert_same_weights(whole.model, again.model)


def test_the_best_model_has_its_experts(tmp_path: Path) -> None:
    best = {"load_best_model_at_end": True, "greater_is_better": True, "eval_strategy": "steps", "eval_steps": 1}
    trainer = trainer_of("sft", tmp_path, **best)
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-1")  # the greatest loss
    alone = trainer_of("sft", tmp_path / "alone", max_steps=1)
    alone.train()
    assert_same_weights(trainer.model, alone.model)


def test_weights_that_are_nowhere_are_named(tmp_path: Path) -> None:
    tiny_model("qwen3_moe", num_hidden_layers=1).save_pretrained(tmp_path)
    with pytest.raises(SetupError, match=r"holds no weights for model\.layers\.1"):
        load_renamed(tiny_model("qwen3_moe"), tmp_path)
