"""Runs of several ranks in which one is killed or stopped at a chosen moment, and what the others do then."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from strop.testing.cases import make_trainer, rows_for

STEP = 2
"""The step in whose course the rank falls; a checkpoint is written after each."""
MOMENTS = {
    "backward": "backward",
    "reward": "score_groups",
    "sampling": "rollout",
    "checkpoint": "_save_rng_state",
    "evaluation": "evaluate_window",
}
"""What a rank is about to do when it falls -> the trainer's method for it; the evaluation is one without training."""


def train_for_long(folder: str) -> None:
    """One rank's part of a run that ends when it is told to."""
    make_trainer(
        "sft",
        folder,
        rows=rows_for("sft", 16),
        per_device_train_batch_size=1,
        num_train_epochs=5000,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=2,
        ddp_backend="gloo",
    ).train()


def train_and_fall(folder: str, verb: str, falls: int, moment: str, number: int, timeout: int = 1800) -> None:
    """One rank's part of a run; rank `falls` sends itself signal `number` at a moment of step `STEP`.

    What the rank raises is left in `error-<rank>`: its class and message; it passes through, as in a script.
    """
    rank = int(os.environ["RANK"])
    groups: dict[str, Any] = {"num_generations": 2} if verb == "grpo" else {}
    trainer = make_trainer(
        verb,
        folder,
        rows=rows_for(verb, 12),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=1,
        num_train_epochs=2,
        save_strategy="steps",
        save_steps=1,
        ddp_backend="gloo",
        ddp_timeout=timeout,
        **groups,
    )

    inner = getattr(trainer, MOMENTS[moment])

    def fall(*args: Any, **kwargs: Any) -> Any:
        begun = trainer.state.global_step + (moment != "checkpoint")
        if rank == falls and (begun == STEP or moment == "evaluation"):
            os.kill(os.getpid(), number)
        return inner(*args, **kwargs)

    setattr(trainer, MOMENTS[moment], fall)
    try:
        trainer.evaluate(rows_for(verb, 4)) if moment == "evaluation" else trainer.train()
    except BaseException as error:
        (Path(folder) / f"error-{rank}").write_text(f"{type(error).__name__}: {error}")
        raise
