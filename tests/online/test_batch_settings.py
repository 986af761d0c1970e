"""Batch settings count completions and mean what they say: any combination runs, with whole groups in every step."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from strop.online.batches import BatchSizes, batch_sizes, split_steps
from strop.records import Example
from strop.testing.cases import make_trainer, rows_for
from strop.testing.rollouts import fix_rollouts

SIZES = range(1, 17)


def sizes_of(per_device: int, accumulation: int, group: int, per_generation: int) -> BatchSizes:
    args = SimpleNamespace(
        gradient_accumulation_steps=accumulation,
        generation_batch_size=None,
        steps_per_generation=per_generation,
        num_iterations=1,
    )
    return batch_sizes(args, per_device * accumulation, group, "completions")


def test_sixteen_to_the_fourth_combinations_make_whole_groups() -> None:
    for settings in itertools.product(SIZES, SIZES, SIZES, SIZES):
        sizes = sizes_of(*settings)
        per_device, accumulation, group, _ = settings
        wanted, prompts = per_device * accumulation, sizes.prompts
        assert (prompts - 1) * group < wanted <= prompts * group, settings  # asked for, rounded up to whole groups
        assert sizes.fresh_steps >= 1, settings


def test_a_round_is_dealt_out_in_whole_steps() -> None:
    for settings in random.Random(0).sample(list(itertools.product(SIZES, SIZES, SIZES, SIZES)), 200):
        sizes = sizes_of(*settings)
        trees = [Example([1], [[2]], row=row) for row in range(sizes.prompts_of_a_round)]
        steps = split_steps(trees, sizes)
        assert [len(step) for step in steps] == [sizes.prompts] * sizes.fresh_steps, settings
        assert [tree.row for step in steps for tree in step] == list(range(len(trees))), settings


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"per_device_train_batch_size": 3}, ["3 completions per step make no whole groups of 2", "2, with 4 comp"]),
        ({"per_device_train_batch_size": 4, "generation_batch_size": 6}, ["generation_batch_size=6 is no whole"]),
        ({"per_device_train_batch_size": 4, "generation_batch_size": 8}, []),
    ],
    ids=str,
)
def test_what_is_rounded_is_said(
    settings: dict[str, Any], said: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_trainer("rloo", tmp_path, num_generations=2, **settings)
    out = capsys.readouterr().out
    assert all(words in out for words in said) and ("whole" in out) == bool(said)


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
    group, prompts = settings["num_generations"], trainer.sizes.prompts
    if trainer.sizes.completions % group:
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


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"generation_batch_size": 6},
            "generation_batch_size=6 is no whole number of optimizer steps of 4 completions",
        ),
        ({"generation_batch_size": 2}, "serves 1, with 4 completions"),
        ({"gradient_accumulation_steps": 2, "steps_per_generation": 3}, "steps_per_generation=3, at gradient_acc"),
        ({"generation_batch_size": 8}, None),
        ({"steps_per_generation": 2}, None),
    ],
    ids=str,
)
def test_a_round_that_is_no_whole_steps_is_announced(
    settings: dict[str, Any], said: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_trainer(
        "grpo", tmp_path, rows=rows_for("grpo", 4), per_device_train_batch_size=4, num_generations=2, **settings
    )
    out = " ".join(capsys.readouterr().out.split())
    assert ("no whole number" in out and said in out) if said else "no whole number" not in out
