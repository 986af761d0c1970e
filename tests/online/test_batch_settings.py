"""Batch settings count completions and mean what they say: any combination runs, with whole groups in every step."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from strop.methods.grpo import GRPOTrainer
from strop.records import Example
from strop.testing.cases import make_trainer, rows_for
from strop.testing.rollouts import fix_rollouts

SIZES = range(1, 17)


class Arithmetic(GRPOTrainer):
    """Only the properties that follow from the batch settings; no model, no rows."""

    def __init__(self, per_device: int, accumulation: int, group: int, per_generation: int) -> None:
        self._train_batch_size = per_device
        self.args = SimpleNamespace(
            gradient_accumulation_steps=accumulation,
            world_size=1,
            process_index=0,
            num_generations=group,
            generation_batch_size=None,
            steps_per_generation=per_generation,
            num_iterations=1,
        )


def test_sixteen_to_the_fourth_combinations_make_whole_groups() -> None:
    for settings in itertools.product(SIZES, SIZES, SIZES, SIZES):
        trainer = Arithmetic(*settings)
        per_device, accumulation, group, _ = settings
        wanted, prompts = per_device * accumulation, trainer.prompts_per_step
        assert (prompts - 1) * group < wanted <= prompts * group, settings  # asked for, rounded up to whole groups
        assert trainer.fresh_steps >= 1, settings


def test_a_round_is_dealt_out_in_whole_steps() -> None:
    for settings in random.Random(0).sample(list(itertools.product(SIZES, SIZES, SIZES, SIZES)), 200):
        trainer = Arithmetic(*settings)
        trees = [Example([1], [[2]], row=row) for row in range(trainer.prompts_per_step * trainer.fresh_steps)]
        steps = trainer.split_steps(trees)
        assert [len(step) for step in steps] == [trainer.prompts_per_step] * trainer.fresh_steps, settings
        assert [tree.row for step in steps for tree in step] == list(range(len(trees))), settings


COMBINATIONS: list[dict[str, Any]] = [
    {"per_device_train_batch_size": 1, "num_generations": 8},
    {"per_device_train_batch_size": 3, "num_generations": 4},
    {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3, "num_generations": 4},
    {"per_device_train_batch_size": 5, "gradient_accumulation_steps": 1, "num_generations": 3, "num_iterations": 2},
    {"per_device_train_batch_size": 4, "steps_per_generation": 3, "num_generations": 2},
    {"per_device_train_batch_size": 3, "generation_batch_size": 13, "num_generations": 5},
]


@pytest.mark.parametrize("settings", COMBINATIONS, ids=lambda s: " ".join(map(str, s.values())))
@pytest.mark.parametrize("verb", ["grpo", "rloo", "online-dpo"])
def test_what_does_not_divide_runs_and_says_what_it_does(
    verb: str, settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = dict(settings)
    if verb == "online-dpo":
        settings.pop("num_iterations", None)
    trainer = fix_rollouts(make_trainer(verb, tmp_path, rows=rows_for(verb, 16), max_steps=2, **settings))
    group, prompts = settings["num_generations"], trainer.prompts_per_step
    if trainer.completions_per_step % group:
        assert f"prompts used for each step: {prompts}, with {prompts * group} completions" in capsys.readouterr().out
    seen: list[list[Example]] = []
    prepare = trainer.prepare_step
    trainer.prepare_step = lambda examples: seen.append(prepare(examples)) or seen[-1]
    trainer.train()
    assert trainer.state.global_step == 2 and len(seen) == 2
    each = 2 if verb == "online-dpo" else group
    for step in seen:
        by_prompt: dict[int, int] = {}
        for tree in step:
            by_prompt[tree.row] = by_prompt.get(tree.row, 0) + len(tree.completions)
        assert set(by_prompt.values()) <= {each}  # no group is torn between steps
        assert len(by_prompt) == prompts or verb == "online-dpo"  # pairs without a preference are left out
