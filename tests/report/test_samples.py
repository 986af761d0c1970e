import json
import random
import tracemalloc
from itertools import pairwise
from typing import Any

import pytest

from strop.report import samples
from strop.report.samples import A_SAMPLE, BINS, MOST_BYTES, MOST_SAMPLES, PAGE, Query, chosen, find, held, shown


def rows(steps: int, per_step: int, run: int = 0, size: int = 10) -> list[dict[str, Any]]:
    rng = random.Random(run)
    return [
        shown({"step": step, "prompt": f"p{i // 2}", "completion": "x" * size, "reward": rng.random()}, run)
        for step in range(steps)
        for i in range(per_step)
    ]


def test_a_long_run_is_shown_by_whole_steps_from_beginning_to_end() -> None:
    kept = chosen(rows(1000, 7))
    steps = sorted({row["step"] for row in kept})
    assert MOST_SAMPLES - 7 < len(kept) <= MOST_SAMPLES
    assert steps[0] == 0 and steps[-1] == 999
    assert max(b - a for a, b in pairwise(steps)) <= 16, "spread evenly"
    assert kept == sorted(kept, key=lambda row: row["step"])
    assert len(json.dumps(chosen(rows(1000, 2, size=7000)))) < 1.1 * MOST_BYTES
    few = rows(9, 4)
    assert chosen(few) == few and chosen([]) == []


def test_a_sample_keeps_its_rewards_and_notes_apart() -> None:
    row = {"step": 3, "prompt": [{"role": "user", "content": "hi"}], "completion": "c", "reward": 2.0}
    row |= {"rewards": {"a": 1.5, "b": 0.5, "c": None}, "advantage": 0.25, "notes": {"n": {"deep": 1}}}
    found = shown(row, 1)
    assert found["rewards"] == {"reward": 2.0, "a": 1.5, "b": 0.5} and found["prompt"] == "user: hi"
    assert found["notes"] == {"advantage": "0.25", "n": '{"deep": 1}'} and found["run"] == 1
    assert shown({"prompt": "p", "rewards": {"only": 1.0}}, 0)["rewards"] == {"only": 1.0}


def test_bars_count_what_the_search_finds_and_filter_it() -> None:
    some = rows(30, 4)
    some[5]["completion"] = "The Needle"
    assert find(some, Query(text="needle"))["total"] == 1
    every = find(some, Query())
    assert sum(every["bars"]["counts"]) == every["total"] == 120 and len(every["bars"]["counts"]) == BINS
    top = find(some, Query(bars=frozenset({BINS - 1, 0})))
    assert top["total"] == every["bars"]["counts"][0] + every["bars"]["counts"][-1]
    assert top["bars"] == every["bars"], "the bars stay while they filter"
    same = [shown({"step": 0, "prompt": "p", "completion": "c", "reward": 1.0}, 0)]
    assert find(same, Query())["bars"]["counts"][0] == 1
    assert find([shown({"step": 0, "prompt": "p"}, 0)], Query())["bars"] is None


def test_groups_are_of_one_prompt_and_step_and_come_in_pages() -> None:
    some = rows(30, 4)
    first = find(some, Query())
    assert first["groups"][0] == some[-4:-2] and len(first["groups"]) == PAGE and first["more"]
    last = find(some, Query(offset=48))
    assert len(last["groups"]) == 12 and not last["more"]
    best = find(some, Query(order="best"))["groups"][0]
    worst = find(some, Query(order="worst"))["groups"][0]
    values = [row["rewards"]["reward"] for row in some]
    assert max(values) in [row["rewards"]["reward"] for row in best]
    assert min(values) in [row["rewards"]["reward"] for row in worst]
    assert {row["step"] for group in find(some, Query(step=7.0))["groups"] for row in group} == {7}


def test_of_several_runs_a_group_is_what_one_prompt_got_in_all() -> None:
    both = find([*rows(3, 4), *rows(3, 4, run=1)], Query())
    assert len(both["groups"]) == 2
    assert {row["run"] for row in both["groups"][0]} == {0, 1}


def test_a_run_without_end_is_held_by_whole_steps_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "MOST_HELD", 1_000_000)
    lines = ((600, {"step": step, "completion": "x" * 500}) for step in range(10_000) for _ in range(4))
    tracemalloc.start()
    kept, said = held(lines)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_500_000, "40,000 of them take 28 MB"
    steps = sorted({row["step"] for row in kept})
    assert steps[0] == 0 and len({b - a for a, b in pairwise(steps)}) == 1 and len(kept) == 4 * len(steps)
    assert steps[-1] > 9_900 and 250_000 < len(kept) * (600 + A_SAMPLE) <= 1_000_000
    assert said == f"samples.jsonl holds 40,000 samples; {len(kept)} of them, of steps spread over the run, are shown."
    of_one_step, said = held((600, {"step": 7, "completion": str(i)}) for i in range(9_000))
    assert len(of_one_step) * (600 + A_SAMPLE) < 1_002_000 and "9,000 samples" in said
    few = [{"step": step} for step in (1, 1, 2)]
    assert held((600, row) for row in few) == (few, "")
