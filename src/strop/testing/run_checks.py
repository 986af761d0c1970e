"""Checks of whole runs: resuming, what is logged, and what a broken row is answered with."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from strop.errors import DataError, StropError
from strop.metric import entries_of
from strop.report.glossary import lookup
from strop.testing.subject import Subject

UNTIMED = ("_runtime", "_per_second", "_time", "memory_peak", "eps", "total_flos")
BROKEN_ROW = 2


class StopAfter(TrainerCallback):
    """Ends a run after some steps, as if its time were over."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step >= self.steps


def resumed_is_never_stopped(subject: Subject) -> None:
    """A run that is cut and resumed ends with the weights, optimizer and log of one that was not."""
    whole, folder = run(subject), str(subject.folder / "cut")
    run(subject, folder, stop=1)
    resumed = run(subject, folder, resume=True)
    for (name, a), (_, b) in zip(whole.model.named_parameters(), resumed.model.named_parameters(), strict=True):
        assert torch.equal(a, b), f"{name} differs after a resume"
    for a, b in zip(whole.optimizer.state.values(), resumed.optimizer.state.values(), strict=True):
        assert all(torch.equal(a[key], b[key]) for key in ("exp_avg", "exp_avg_sq")), (
            "the optimizer differs after a resume"
        )
    first, second = (logged(Path(trainer.args.output_dir)) for trainer in (whole, resumed))
    steps = {line["step"] for line in first}
    second = [line for line in second if line["step"] in steps]  # a stop also logs the window that it cuts short
    assert len(first) == len(second), f"{len(first)} lines were logged without a stop, {len(second)} with one"
    for a, b in zip(first, second, strict=True):
        different = sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))
        assert not different, f"logged values differ after a resume: {', '.join(different)}"


def run(subject: Subject, folder: str | None = None, *, stop: int | None = None, resume: bool = False) -> Any:
    """Two epochs, with a checkpoint where it is stopped or ends; online methods sample for real."""
    settings: dict[str, Any] = {
        "num_train_epochs": 2,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "save_strategy": "steps",
        "save_steps": stop or 1000,
        "logging_steps": 2,
        "lr_scheduler_type": "linear",
    }
    trainer = subject.trainer(fixed=False, **settings, **(dict[str, Any](output_dir=folder) if folder else {}))
    if stop:
        trainer.add_callback(StopAfter(stop))
    trainer.train(resume_from_checkpoint=resume or None)
    return trainer


def logged(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what measures time; the summary at the end is left out."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.endswith(UNTIMED)} for line in lines if "train_runtime" not in line]


def logged_metrics_are_declared(subject: Subject) -> None:
    """Every key that training and evaluation log has an entry in the glossary."""
    trainer = subject.trainer(fixed=False, max_steps=2)
    trainer.train()
    trainer.evaluate(subject.rows)
    lines = [json.loads(line) for line in (Path(trainer.args.output_dir) / "metrics.jsonl").read_text().splitlines()]
    keys = sorted({key for line in lines for key in line} - {"step"})
    assert any(key.startswith("eval_") for key in keys) and "loss" in keys, f"only {keys} are logged"
    unknown = [key for key in keys if lookup(key, entries_of(type(trainer))) is None]
    assert not unknown, (
        f"logged without an entry in the class's `glossary` or strop.report.glossary: {', '.join(unknown)}"
    )


def broken_row_is_named(subject: Subject) -> None:
    """A row with a hole is refused before training by a DataError that names it, never by a foreign error."""
    named = []
    for column in subject.rows[0]:
        for hole in (None, object()):
            rows = copy.deepcopy(subject.rows)
            rows[BROKEN_ROW][column] = hole
            try:
                subject.trainer(rows=rows)
            except DataError as error:
                if f"row {BROKEN_ROW}" in str(error):
                    named.append(column)
            except StropError:
                continue
            except Exception as error:
                raise AssertionError(
                    f"{column}={hole!r} in row {BROKEN_ROW} gives {type(error).__name__}: {error}"
                ) from error
    assert named, f"no hole in row {BROKEN_ROW} is answered with a DataError that names the row"
