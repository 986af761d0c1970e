"""Which checkpoint a run goes on from, and what is said about it; that it is the same run then is
`test_resume_processes.py`."""

from __future__ import annotations

import pytest
import torch

from strop.engine.checkpoint import checkpoints, newest_valid, problems_of
from strop.errors import CheckpointError
from strop.testing.cases import make_trainer, rows_for


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


@pytest.mark.parametrize("lacking", ["row_order", "metrics", "extra", "kinds"])
def test_a_checkpoint_of_another_version_is_refused_by_name(tmp_path, lacking):
    trainer = make_trainer("sft", tmp_path)
    state = {
        "world_size": 1, "only_model": False, "row_order": trainer.row_order(), "metrics": {"train": {}}, "extra": {},
    }  # fmt: skip
    if lacking == "kinds":
        state["metrics"] = {"train": {"loss": [1.0, 1.0]}}
    else:
        del state[lacking]
    torch.save(state, tmp_path / "strop_state.pt")
    with pytest.raises(CheckpointError, match=r"another version of strop.*has no"):
        trainer.load_strop_state(tmp_path)
