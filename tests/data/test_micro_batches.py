"""Micro-batches by token budget: complete, within limits, even, deterministic."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strop.data import plan_micro_batches, tree_cost
from strop.errors import ConfigError
from strop.records import Example


def test_tree_cost_counts_the_prompt_once() -> None:
    tree = Example([1, 2], [[3], [4, 5, 6]])
    assert tree_cost(tree) == 6 and tree_cost([tree, tree]) == 12


@pytest.mark.parametrize(
    ("costs", "limits", "wanted"),
    [
        ([], {}, []),
        ([3, 1, 2], {}, [[0, 1, 2]]),
        ([3, 1, 2], {"max_trees": 1}, [[0], [2], [1]]),
        ([4, 3, 3, 2], {"max_tokens": 6}, [[0, 3], [1, 2]]),
        ([9, 1, 1], {"max_tokens": 4}, [[0], [1], [2]]),
        ([5, 5, 5, 5], {"max_trees": 3}, [[0, 2], [1, 3]]),
    ],
)
def test_plan(costs: list[int], limits: dict[str, int], wanted: list[list[int]]) -> None:
    assert plan_micro_batches(costs, **limits) == wanted
    assert plan_micro_batches([Example([], [[0] * cost]) for cost in costs], **limits) == wanted


@settings(max_examples=120, deadline=None)
@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=40),
    st.none() | st.integers(1, 120),
    st.none() | st.integers(1, 9),
)
def test_plan_holds_its_limits(costs: list[int], max_tokens: int | None, max_trees: int | None) -> None:
    plan = plan_micro_batches(costs, max_tokens=max_tokens, max_trees=max_trees)
    assert sorted(index for batch in plan for index in batch) == list(range(len(costs)))
    loads = [sum(costs[i] for i in batch) for batch in plan]
    assert loads == sorted(loads, reverse=True) and all(batch == sorted(batch) and batch for batch in plan)
    for batch, load in zip(plan, loads, strict=True):
        assert max_trees is None or len(batch) <= max_trees
        assert max_tokens is None or load <= max_tokens or len(batch) == 1
    assert plan == plan_micro_batches(costs, max_tokens=max_tokens, max_trees=max_trees)
    if max_trees is None:  # even: the heaviest is heavier than the lightest by one tree at most
        assert loads[0] - loads[-1] <= max(costs)


def test_limits_must_be_possible() -> None:
    for limits in ({"max_tokens": 0}, {"max_trees": -1}):
        with pytest.raises(ConfigError, match="give 1 or more"):
            plan_micro_batches([1], **limits)
