"""A reward that hangs or dies in the middle of a run: the run ends in bounded time with its name, or goes on without
it, as `reward_on_error` says."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from strop.engine.checkpoint import newest_valid
from strop.errors import RewardError
from strop.testing.cases import letters_reward, make_trainer


def dies(completions: list[str], trainer_state: Any, **kwargs: Any) -> list[float]:
    if trainer_state.global_step == 1:
        os._exit(3)
    return letters_reward(completions)


class AtHome:
    """Hangs in the training process, after the first step."""

    __name__ = "at_home"

    def __reduce__(self) -> Any:
        raise TypeError("cannot be moved")

    def __call__(self, completions: list[str], trainer_state: Any, **kwargs: Any) -> list[float]:
        while trainer_state.global_step == 1:
            time.sleep(0.01)
        return letters_reward(completions)


def run(folder: Path, reward: Any, **settings: Any) -> Any:
    return make_trainer(
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


@pytest.mark.parametrize(
    ("reward", "seconds", "said"),
    [(AtHome(), 0.4, "'at_home'.*did not return within"), (dies, 120.0, "'dies'.*ended|'dies'.*died|'dies'.*exit")],
    ids=["hangs", "dies"],
)
def test_a_reward_that_fails_ends_the_run_with_its_name(reward: Any, seconds: float, said: str, tmp_path: Path) -> None:
    trainer = run(tmp_path, reward, reward_timeout=seconds)
    start = time.monotonic()
    with pytest.raises(RewardError, match=said):
        trainer.train()
    assert time.monotonic() - start < 100
    newest, _ = newest_valid(tmp_path)
    assert newest is not None and newest.name == "checkpoint-1"


def test_a_run_may_go_on_without_what_failed(tmp_path: Path) -> None:
    trainer = run(tmp_path, AtHome(), reward_on_error="skip", reward_timeout=0.4)
    trainer.train()
    assert trainer.state.global_step == 3
