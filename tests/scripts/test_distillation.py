"""DistillationTrainer: GKD on the student's own completions, from rows that hold prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import strop
from strop.errors import ConfigError
from strop.scripts.distillation import DistillationConfig, DistillationTrainer
from strop.testing.cases import make_trainer, rows_for

PROMPTS = [{"prompt": row["prompt"]} for row in rows_for("gkd", 4)]
QUICK = {"use_cpu": True, "report_to": "none", "save_strategy": "no", "max_steps": 1, "max_completion_length": 6}


def distil(folder: Path, **settings: Any) -> Any:
    """A trainer with the models of the checks, and settings of its own class."""
    like = make_trainer("gkd", folder / "like")
    args = DistillationConfig(output_dir=str(folder), **{**QUICK, **settings})
    return DistillationTrainer(
        like.model, like.teacher, args, train_dataset=PROMPTS, eval_dataset=PROMPTS[:2],
        processing_class=like.processing_class,
    )  # fmt: skip


def test_it_is_gkd_with_lmbda_1(tmp_path: Path) -> None:
    shared = {"seed": 3, "learning_rate": 0.01, "temperature": 1.0, "beta": 1.0, "max_completion_length": 6}
    shared |= {"max_steps": 1, "per_device_train_batch_size": 4}
    own = distil(tmp_path / "own", lr_scheduler_type="constant", **shared)
    own.train()
    same = make_trainer("gkd", tmp_path / "gkd", rows=PROMPTS, lmbda=1.0, max_length=None, **shared)
    same.train()
    assert own.state.log_history[0]["jsd"] == same.state.log_history[0]["jsd"] > 0
    assert own.evaluate()["eval_jsd"] > 0  # sampled, as the rows have no completion


def test_completions_of_rows_are_not_looked_at(tmp_path: Path) -> None:
    trainer = distil(tmp_path)
    assert trainer.rows(rows_for("gkd", 2), "eval")[0].completions == []


def test_every_step_is_on_policy() -> None:
    with pytest.raises(ConfigError, match=r"lmbda=0\.5"):
        DistillationConfig(output_dir="x", use_cpu=True, lmbda=0.5)
    assert strop.DistillationTrainer is DistillationTrainer


def test_a_teachers_revision_reaches_its_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    resolve = strop.methods.gkd.resolve_model

    def noted(*args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs.pop("init_kwargs"))
        return resolve(*args, init_kwargs={}, **kwargs)

    monkeypatch.setattr("strop.methods.gkd.resolve_model", noted)
    distil(tmp_path, teacher_model_revision="v2", teacher_model_init_kwargs={"dtype": "float32"})
    assert {"revision": "v2", "dtype": "float32"} in seen
