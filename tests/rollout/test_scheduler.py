from __future__ import annotations

import numpy as np
import torch

from strop.rollout.scheduler import Row, Scheduler, as_rollout_lists
from strop.rollout.stopping import StopRule


def row(prompt: int, sample: int, tokens: int = 1, length: int = 5) -> Row:
    return Row(prompt, prompt, sample, length, 9, np.zeros(9), ids=[10 + prompt] * tokens, logps=[0.0] * tokens)


def test_a_row_ends_at_a_stop_id_or_at_its_limit() -> None:
    one = Row(0, 0, 0, 3, 2, np.zeros(2))
    one.accept(5, -0.5, StopRule([7]))
    assert one.finish is None
    one.accept(7, -1.0, StopRule([7]))  # a stop id in the last place is a stop, not a cut
    assert one.finish == "stop" and one.ids == [5, 7] and one.logps == [-0.5, -1.0]
    two = Row(0, 0, 0, 3, 1, np.zeros(1))
    two.accept(5, -0.5, StopRule([7]))
    assert two.finish == "length"


def test_gaps_are_closed_by_the_last_rows() -> None:
    scheduler = Scheduler([], 5, share_prompts=True)
    scheduler.slots = [row(0, i, tokens=i + 1) for i in range(5)]
    scheduler.slots[0].finish = scheduler.slots[3].finish = "stop"
    assert [r.sample for r in scheduler.retire()] == [0, 3]
    moves = scheduler.compact()
    assert [(m.source, m.target, m.length) for m in moves] == [(4, 0, 4)]
    assert [r.sample if r else None for r in scheduler.slots] == [4, 1, 2, None, None]
    assert scheduler.compact() == []


def test_a_plan_of_shared_prompts_groups_the_rows() -> None:
    scheduler = Scheduler([], 4, share_prompts=True)
    scheduler.slots = [
        row(1, 0, tokens=3, length=4),
        row(0, 0, tokens=1, length=6),
        row(1, 1, tokens=2, length=4),
        None,
    ]
    ids, plan = scheduler.plan(torch.device("cpu"))
    assert ids.tolist() == [11, 10, 11]
    assert plan.own.tolist() == [2, 0, 1]
    assert plan.positions.tolist() == [6, 6, 5]
    assert plan.capacity == 3 and plan.lockstep is None
    assert plan.order is not None and plan.order.tolist() == [1, 0, 2]
    assert plan.inverse is not None and plan.inverse.tolist() == [1, 0, 2]
    groups = [(g.prompt, g.length, g.start, g.stop, g.positions) for g in plan.groups]
    assert groups == [(0, 6, 0, 1, [6]), (1, 4, 1, 3, [6, 5])]


def test_a_plan_of_forked_prompts_counts_the_prompt_as_the_rows_own() -> None:
    scheduler = Scheduler([], 2, share_prompts=False)
    scheduler.slots = [row(0, 0, tokens=2, length=5), row(1, 0, tokens=2, length=5)]
    _, plan = scheduler.plan(torch.device("cpu"))
    assert plan.own.tolist() == [6, 6] and plan.positions.tolist() == [6, 6]
    assert plan.lockstep == 6 and plan.groups == []


def test_a_prompt_is_awaited_until_its_last_row_has_entered() -> None:
    scheduler = Scheduler([row(0, 0), row(1, 0)], 1, share_prompts=True)
    assert scheduler.awaited(0) and scheduler.awaited(1)
    scheduler.waiting.popleft()
    assert not scheduler.awaited(0) and scheduler.awaited(1)
    scheduler.waiting.popleft()
    assert not scheduler.awaited(1)


def test_rows_come_back_by_prompt_and_sample() -> None:
    rows = [row(1, 1, 2), row(0, 0, 1), row(1, 0, 3), row(0, 1, 4)]
    lists = as_rollout_lists(rows, 2, 2)
    assert [[len(ids) for ids in line] for line in lists["completions"]] == [[1, 4], [3, 2]]
