"""A reward that hangs or dies in the middle of a run: the run ends in bounded time with its name, or goes on without
it, as `reward_on_error` says."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from tests.support.patience import with_patience

from strop.engine.checkpoint import newest_valid
from strop.errors import RewardError
from strop.testing.cases import make_trainer


def after_one_step(trouble: Any) -> Any:
    """A reward that does something else in the second step; it travels by value."""

    def reward(completions: list[str], trainer_state: Any, **kwargs: Any) -> list[float]:
        if trainer_state.global_step == 1:
            trouble()
        return [float(len(text)) for text in completions]

    return reward


def hang() -> None:
    while True:
        time.sleep(0.01)


def run(folder: Path, reward: Any, **settings: Any) -> Any:
    trainer = make_trainer(
        "grpo",
        folder,
        num_generations=2,
        per_device_train_batch_size=2,
        trainer={"reward_funcs": reward},
        save_strategy="steps",
        save_steps=1,
        max_steps=3,
        **settings,
    )
    trainer.train()
    return trainer


@with_patience(0.2, 10.0)
def test_a_reward_that_hangs_ends_the_run_with_its_name(tmp_path: Path, seconds: float) -> None:
    folder = tmp_path / str(seconds)
    with pytest.raises(RewardError, match=r"'reward'.*did not return within"):
        run(folder, after_one_step(hang), reward_timeout=seconds)
    newest, _ = newest_valid(folder)
    assert newest is not None and newest.name == "checkpoint-1"


def test_a_run_may_go_on_without_what_hangs(tmp_path: Path) -> None:
    trainer = run(tmp_path, after_one_step(hang), reward_on_error="skip", reward_timeout=0.2)
    assert trainer.state.global_step == 3


def test_isolation_contains_what_ends_its_process(tmp_path: Path) -> None:
    def leave() -> None:
        import os

        os._exit(3)

    trainer = run(tmp_path, after_one_step(leave), reward_isolation=True, reward_on_error="skip")
    assert trainer.state.global_step == 3 and trainer.rewards.places == {"reward": "a process of its own"}
