"""Every step of a run is in a log line, the last ones too, and the whole run's mean is that of the whole run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from strop.testing.cases import make_trainer, rows_for

SETTINGS = {"per_device_train_batch_size": 2, "dtype": torch.float32, "save_strategy": "no"}


def run(folder: Path, verb: str = "sft", resume: Any = None, callbacks: Any = (), **settings: Any) -> Any:
    trainer = make_trainer(verb, folder, rows=rows_for(verb, 10), **{**SETTINGS, **settings})
    for callback in callbacks:
        trainer.add_callback(callback)
    trainer.result = trainer.train(resume_from_checkpoint=resume)
    return trainer


def lines(trainer: Any) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in trainer.state.log_history if "loss" in line]


class StopAt(TrainerCallback):
    """Ends a run in the middle, as early stopping does."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step == 3


@pytest.mark.parametrize(("verb", "name"), [("sft", "mean_token_accuracy"), ("grpo", "reward")])
def test_a_run_shorter_than_a_window_is_logged(verb: str, name: str, tmp_path: Path) -> None:
    steps = {"grpo": {"num_generations": 2}}.get(verb, {})
    trainer = run(tmp_path, verb, logging_steps=10, max_steps=3, **steps)
    (line,) = [line for line in trainer.state.log_history if "loss" in line]
    assert line["step"] == 3 and name in line
    summary = trainer.state.log_history[-1]
    assert "train_loss" in summary and summary[name] == line[name] and "loss" not in summary


def test_windows_add_up_to_the_run(tmp_path: Path) -> None:
    every = lines(run(tmp_path / "every", max_steps=5, logging_steps=1))
    whole = run(tmp_path / "whole", max_steps=5, logging_steps=3)
    means = [sum(loss for _, loss in every[:3]) / 3, sum(loss for _, loss in every[3:]) / 2]
    assert [step for step, _ in lines(whole)] == [3, 5]
    assert [loss for _, loss in lines(whole)] == pytest.approx(means)
    assert whole.result.training_loss == pytest.approx(sum(loss for _, loss in every) / 5)
    assert whole.result.metrics["train_loss"] == whole.result.training_loss


def test_a_run_that_ends_early_is_logged_to_its_end(tmp_path: Path) -> None:
    assert [step for step, _ in lines(run(tmp_path, logging_steps=10, callbacks=[StopAt()]))] == [3]


def test_no_logging_stays_no_logging(tmp_path: Path) -> None:
    assert not lines(run(tmp_path, logging_strategy="no", max_steps=2))


def test_the_loss_of_a_resumed_run_is_that_of_the_whole_run(tmp_path: Path) -> None:
    settings = {"logging_steps": 3, "save_strategy": "steps", "save_steps": 2}
    whole = run(tmp_path, max_steps=5, **settings)
    resumed = run(tmp_path, max_steps=5, resume=str(tmp_path / "checkpoint-2"), **settings)
    assert resumed.result.training_loss == whole.result.training_loss
    assert lines(resumed) == lines(whole)


def test_a_finished_run_that_is_asked_to_go_on_returns_the_loss_it_had(tmp_path: Path) -> None:
    settings = {"max_steps": 3, "save_strategy": "steps", "save_steps": 3}
    whole = run(tmp_path, **settings)
    again = run(tmp_path, resume=True, **settings)
    assert again.result.training_loss == again.result.metrics["train_loss"] == whole.result.training_loss


class Ask(TrainerCallback):
    """Asks for log lines that nobody foresees."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_log = control.should_log or state.global_step in (2, 4)


@pytest.mark.parametrize(
    ("verb", "name", "when"),
    [("sft", "mean_token_accuracy", "epoch"), ("dpo", "logits/chosen", "callback"), ("grpo", "entropy", "epoch")],
)
def test_costly_metrics_are_in_every_line(verb: str, name: str, when: str, tmp_path: Path) -> None:
    online = {"num_generations": 2, "per_device_train_batch_size": 10} if verb == "grpo" else {}
    settings = {"logging_steps": 10, **online}
    if when == "epoch":
        trainer = run(tmp_path, verb, logging_strategy="epoch", num_train_epochs=2, **settings)
    else:
        trainer = run(tmp_path, verb, callbacks=[Ask()], max_steps=5, **settings)
    logged = [line for line in trainer.state.log_history if "loss" in line]
    assert len(logged) == (2 if when == "epoch" else 3) and all(name in line for line in logged)
    if online:
        samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
        assert len({sample["step"] for sample in samples}) >= 2
