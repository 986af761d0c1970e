"""Going on with a run on another number of processes: the same rows come next, and the weights are the same but for
rounding; on the same number, everything is the same, byte for byte."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.support.processes import run_ranks
from tests.support.resume import Record, cut_off, largest_gap, on_two_ranks, record, row_numbers, run_of, unlike

from strop.errors import CheckpointError
from strop.testing.cases import CASES

TOLERANCE = 1e-9
WINDOW = {"generation_batch_size": 8, "num_iterations": 2, "rows": 6, "max_steps": 6}
SYNCED = {"sync_ref_model": True, "ref_model_sync_steps": 2}
EXACT = {"dtype": torch.float64, "fixed": True, "optim": "sgd", "learning_rate": 1e-2}
RUNS: list[tuple[str, dict[str, Any], int]] = [
    ("sft", {"stream": True, "rows": 9, "max_steps": 7}, 4),
    ("dpo", {**SYNCED, "optim": "adamw_torch", "adam_epsilon": 1e-4}, 3),
    ("kto", {}, 1),
    ("bco", {}, 3),
    ("grpo", {"use_adaptive_entropy": True, "entropy_target": 9.0, "beta": 0.1, **WINDOW}, 3),
    ("ppo", {"num_iterations": 2, "num_mini_batches": 2, "max_steps": 6}, 3),
]
REST: list[tuple[str, dict[str, Any], int]] = [(verb, {}, cut) for verb in CASES for cut in (1, 3)]


def everything(
    runs: list[tuple[str, dict[str, Any], int]], folder: Any, work: Callable[..., Any] = on_two_ranks
) -> list[dict[str, Any]]:
    """Per run: what one process recorded, what two did (by `work`), and what one did after two."""
    exact = [(verb, {**EXACT, **options}, cut) for verb, options, cut in runs]
    wholes = []
    for index, (verb, options, cut) in enumerate(exact):
        wholes.append(record(verb, folder / f"{index}", options, save_at=[cut]))
        cut_off(folder / f"{index}", cut, folder / f"{index}-one")
    first, second = run_ranks(work, 2, folder / "ranks", exact, str(folder))
    found = []
    for index, (verb, options, cut) in enumerate(exact):
        down = record(verb, folder / f"{index}-down", options, resume=True)
        found.append({"one": wholes[index], "ranks": [first[index], second[index]], "down": down, "cut": cut})
    return found


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return everything(RUNS, tmp_path_factory.mktemp("ranks"))


def assert_goes_on(whole: Record, cut: int, *ranks: Record) -> None:
    """The rows after the cut are those of the run on one process, and so is what was learned from them."""
    assert row_numbers(*ranks) == {step: rows for step, rows in row_numbers(whole).items() if step > cut}
    for rank in ranks:
        assert largest_gap(whole, rank) < TOLERANCE
    assert len(ranks[0]["log"]) == len(whole["log"])
    for one, other in zip(whole["log"], ranks[0]["log"], strict=True):
        for name in one.keys() - {"epoch", "shared_tokens"}:
            assert other[name] == pytest.approx(one[name], rel=1e-5, abs=1e-7), f"{name} of step {one['step']}"


def check(result: dict[str, Any]) -> None:
    whole, cut, ranks = result["one"], result["cut"], result["ranks"]
    assert row_numbers(*(rank["two"] for rank in ranks)) == row_numbers(whole)
    assert_goes_on(whole, cut, *(rank["from one"] for rank in ranks))
    assert_goes_on(whole, cut, result["down"])
    for rank in ranks:
        assert unlike(rank["two"], rank["again"], cut) == []


@pytest.mark.parametrize("index", range(len(RUNS)), ids=[f"{verb} {' '.join(o)}".strip() for verb, o, _ in RUNS])
def test_one_and_two_processes_go_on_with_each_others_runs(index: int, results: list[dict[str, Any]]) -> None:
    check(results[index])


@pytest.mark.slow
def test_all_cases_at_all_cuts(tmp_path: Any) -> None:
    for result in everything(REST, tmp_path):
        check(result)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"gradient_accumulation_steps": 1}, r"rows of a step.*: 4, now 2"),
        ({"rows": 9}, r"rows: 10, now 9"),
        ({"seed": 1}, r"seed.*: 0, now 1"),
        ({"train_sampling_strategy": "sequential"}, r"shuffled: True, now False"),
    ],
    ids=["step", "rows", "seed", "order"],
)
def test_other_rows_in_a_step_are_refused(changed: dict[str, Any], named: str, tmp_path: Any) -> None:
    record("sft", tmp_path, {}, save_at=[1])
    with pytest.raises(CheckpointError, match=named) as error:
        run_of("sft", tmp_path, changed).train(resume_from_checkpoint=True)
    assert "gradient_accumulation_steps so that a step keeps its rows" in str(error.value)
    run_of("sft", tmp_path, {**changed, "ignore_data_skip": True}).train(resume_from_checkpoint=True)


def test_prompts_of_a_round_are_part_of_it(tmp_path: Any) -> None:
    record("grpo", tmp_path, WINDOW, save_at=[3])
    with pytest.raises(CheckpointError, match="steps of a round of sampling: 4, now 2"):
        run_of("grpo", tmp_path, {**WINDOW, "num_iterations": 1}).train(resume_from_checkpoint=True)


def test_a_model_alone_is_no_place_to_go_on_from(tmp_path: Any) -> None:
    record("sft", tmp_path, {"save_only_model": True}, save_at=[1])
    with pytest.raises(CheckpointError, match=r"checkpoint-1 was written with save_only_model=True.*model=that folder"):
        run_of("sft", tmp_path, {}).train(resume_from_checkpoint=True)
