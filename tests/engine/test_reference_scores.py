"""Remembered log-probs of the reference: found again by content, dropped when the reference moves, never another's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from strop.engine.reference_scores import content_key
from strop.records import Example
from strop.testing.cases import make_trainer, rows_for
from strop.testing.tiny import tiny_model

TREE = Example([1, 2], [[3, 4], [5]], row=7, extras={"margin": 1.0})


def test_rows_are_known_by_everything_that_their_log_probs_depend_on() -> None:
    others = [
        replace(TREE, prompt_ids=[1]),
        replace(TREE, prompt_ids=[1, 2, 3], completions=[[4], [5]]),
        replace(TREE, completions=[[3], [4, 5]]),
        replace(TREE, completions=[[5], [3, 4]]),
        replace(TREE, completions=[[3, 4]]),
        replace(TREE, loss_mask=[[0, 1], [1]]),
        replace(TREE, loss_mask=[[1, 0], [1]]),
        replace(TREE, score_prompt=True),
    ]
    assert len({content_key(tree) for tree in (TREE, *others)}) == 1 + len(others)
    same = [replace(TREE, row=1), replace(TREE, extras={}), replace(TREE, loss_mask=[[1, 1], [1]])]
    assert {content_key(tree) for tree in same} == {content_key(TREE)}


def dpo(folder: Path, **options: Any) -> Any:
    return make_trainer("dpo", folder, rows=rows_for("dpo", 4), learning_rate=1e-2, num_train_epochs=3, **options)


def scored(trainer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs as the trainer sees them, and computed now."""
    batch = trainer.build([trainer.train_dataset[i] for i in range(4)])
    return trainer.reference_scores(batch).logps, trainer.reference_scores.compute(batch).logps


def test_a_reference_that_moves_is_scored_again(tmp_path: Path) -> None:
    trainer = dpo(tmp_path, sync_ref_model=True, ref_model_sync_steps=2, ref_model_mixup_alpha=1.0)
    start, _ = scored(trainer)
    trainer.train()
    seen, now = scored(trainer)
    assert not torch.allclose(start, now, atol=1e-4) and torch.allclose(seen, now, atol=1e-12)


def test_log_probs_of_another_reference_are_not_taken_over(tmp_path: Path) -> None:
    first = dpo(tmp_path / "first")
    expected, _ = scored(first)
    first.reference_scores.save(tmp_path / "logps.safetensors")
    again, other = dpo(tmp_path / "again"), dpo(tmp_path / "other", model=tiny_model("llama", seed=5, vocab_size=288))
    assert again.reference_scores.load(tmp_path / "logps.safetensors")
    assert torch.equal(scored(again)[0], expected)
    assert not other.reference_scores.load(tmp_path / "logps.safetensors")
    assert torch.allclose(*scored(other), atol=1e-12)
