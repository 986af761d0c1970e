from collections.abc import Callable

import pytest

from strop.demo.task import (
    accuracy,
    answer_of,
    pair_rows,
    prompt_of,
    sampled_pairs,
    sft_rows,
    spells_backward,
)
from strop.demo.words import held_out_words, train_words


@pytest.mark.parametrize(
    ("completion", "right"),
    [
        (" enots", True),
        ("enots", True),
        (" stone", False),
        (" enot", False),
        (" enotss", False),
        (" en ots", False),
        ("", False),
    ],
)
def test_verifier(completion: str, right: bool) -> None:
    assert spells_backward("stone backward:", completion) is right


def test_demonstrations_have_the_asked_quality_and_use_training_words_only() -> None:
    rows = sft_rows(5000, seed=3)
    right = [spells_backward(row["prompt"], row["completion"]) for row in rows]
    assert 0.37 < sum(right) / len(rows) < 0.43
    words = {row["prompt"].removesuffix(" backward:") for row in rows}
    assert words <= set(train_words()) and not words & set(held_out_words())
    copies = [row for row, good in zip(rows, right, strict=True) if not good]
    assert all(row["completion"] == " " + row["prompt"].removesuffix(" backward:") for row in copies)


def test_rows_depend_on_the_seed_alone() -> None:
    assert sft_rows(20, seed=1) == sft_rows(20, seed=1) != sft_rows(20, seed=2)


def test_pairs_compare_a_right_with_a_wrong_sample() -> None:
    prompts = [prompt_of(w) for w in ("stone", "river", "plane")]
    samples = [[" stone", " enots", " enotz", " stone"], [" river", " rever"], [" enalp", " enalp"]]
    pairs = sampled_pairs(prompts, samples, per_prompt=5)
    assert {(p["prompt"], p["chosen"]) for p in pairs} == {("stone backward:", " enots")}
    assert sorted(p["rejected"] for p in pairs) == [" enotz", " stone"]
    assert len(sampled_pairs(prompts, samples)) == 1


def test_the_answer_stands_in_where_no_sample_is_right() -> None:
    pairs = sampled_pairs(["river backward:"], [[" river", ""]], answer_if_none=True)
    assert pairs == [{"prompt": "river backward:", "chosen": " revir", "rejected": " river"}]


def copier(prompts: list[str], n: int) -> list[list[str]]:
    return [[" " + prompt.split()[0]] * n for prompt in prompts]


def half(prompts: list[str], n: int) -> list[list[str]]:
    return [[answer_of(p.split()[0]) if i % 2 else " x" for i in range(n)] for p in prompts]


@pytest.mark.parametrize(("sample", "expected"), [(copier, 0.0), (half, 0.5)])
def test_accuracy_is_the_share_of_right_samples(sample: Callable, expected: float) -> None:
    assert accuracy(["stone", "river"], sample, n=4) == expected


def test_pair_rows_asks_the_sampler_for_n() -> None:
    rows = pair_rows(["stone", "river"], half, n=2)
    assert [(r["chosen"], r["rejected"]) for r in rows] == [(" enots", " x"), (" revir", " x")]
