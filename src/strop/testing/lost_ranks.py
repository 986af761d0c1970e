"""Runs of several ranks in which one is killed or stopped at a chosen moment, and what the others do then."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from strop.testing.cases import make_trainer, rows_for

MOMENTS = ("backward", "reward", "sampling", "checkpoint")
STEP = 2
"""The step in whose course the rank falls; a checkpoint is written after each."""


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

    def fall() -> None:
        at = trainer.state.global_step + (moment != "checkpoint")
        if at == STEP and rank == falls:
            os.kill(os.getpid(), number)

    before(trainer, moment, fall)
    try:
        trainer.train()
    except BaseException as error:
        (Path(folder) / f"error-{rank}").write_text(f"{type(error).__name__}: {error}")
        raise


def before(trainer: Any, moment: str, fall: Callable[[], None]) -> None:
    """Have `fall` called in the middle of what a moment is named after."""
    owner, name = {
        "backward": (trainer, "backward_micro_batch"),
        "reward": (getattr(trainer, "rewards", None), "score"),
        "sampling": (trainer.generator if moment == "sampling" else None, "generate"),
        "checkpoint": (trainer, "_save_rng_state"),
    }[moment]
    inner = getattr(owner, name)

    def watched(*args: Any, **kwargs: Any) -> Any:
        fall()
        return inner(*args, **kwargs)

    setattr(owner, name, watched)
