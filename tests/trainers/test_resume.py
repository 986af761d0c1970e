"""A resumed run is the same run: weights, optimizer, next rows, metrics, byte for byte."""

from __future__ import annotations

import json

import pytest
import torch

from strop.errors import CheckpointError
from strop.testing.cases import make_trainer, rows_for
from strop.trainers.checkpoint import checkpoints, newest_valid, problems_of

OFFLINE = ("sft", "reward", "dpo", "kto", "orpo", "cpo", "bco", "xpo", "prm")


def run(verb, folder, *, steps, resume=None, **overrides):
    trainer = make_trainer(
        verb,
        folder,
        rows=rows_for(verb, 10),
        dtype=torch.float32,
        num_train_epochs=2,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        logging_steps=2,
        save_strategy="steps",
        save_steps=1,
        lr_scheduler_type="linear",
        **overrides,
    )
    if steps:
        from transformers import TrainerCallback

        class Stop(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                control.should_training_stop = state.global_step >= steps

        trainer.add_callback(Stop())
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def logged(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timing = (
        "train_runtime",
        "train_samples_per_second",
        "train_steps_per_second",
        "total_flos",
        "train_loss",
        "step_time",
        "eps",
    )
    return [{k: v for k, v in line.items() if k not in timing} for line in lines if "train_runtime" not in line]


@pytest.mark.parametrize("verb", OFFLINE)
@pytest.mark.parametrize("cut", [1, 3], ids=["mid-epoch", "epoch end"])
def test_resume_equals_not_stopping(verb, cut, tmp_path):
    whole = run(verb, tmp_path / "whole", steps=None)
    run(verb, tmp_path / "cut", steps=cut)
    resumed = run(verb, tmp_path / "cut", steps=None, resume=True)
    assert resumed.state.global_step == whole.state.global_step == 6
    for (name, a), (_, b) in zip(whole.model.named_parameters(), resumed.model.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    for a, b in zip(whole.optimizer.state.values(), resumed.optimizer.state.values(), strict=True):
        assert torch.equal(a["exp_avg"], b["exp_avg"]) and torch.equal(a["exp_avg_sq"], b["exp_avg_sq"])
    assert logged(tmp_path / "whole") == logged(tmp_path / "cut")


def test_damaged_checkpoints_are_passed_over_and_named(tmp_path, capsys):
    run("dpo", tmp_path, steps=3)
    newest, second = checkpoints(tmp_path)[:2]
    (newest / "optimizer.pt").write_bytes(b"cut off")
    assert "optimizer.pt" in problems_of(newest)[0]
    found, skipped = newest_valid(tmp_path)
    assert found == second and newest.name in skipped[0]
    (second / "manifest.json").unlink()
    assert "no manifest" in problems_of(second)[0]
    with pytest.raises(CheckpointError, match="has 7 bytes"):
        run("dpo", tmp_path, steps=None, resume=str(newest))


def test_nothing_half_written_is_left_beside(tmp_path):
    run("sft", tmp_path, steps=2)
    assert not list(tmp_path.glob(".partial*"))
    assert [p.name for p in checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-1"]


def test_resume_without_a_checkpoint_says_so(tmp_path):
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        run("sft", tmp_path, steps=1, resume=True)
