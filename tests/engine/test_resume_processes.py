"""A run that is gone on with in a new process is the run that was never stopped, byte for byte: all of them."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.processes import start
from tests.support.resume import Record, cut_off, cut_short, go_on_into, record, unlike

from strop.testing.cases import CASES

SECONDS = 400
MID_EPOCH, EPOCH_END = 1, 3
DROPOUT = {"arch": "gpt2", "disable_dropout": False}
WINDOW = {"generation_batch_size": 8, "num_iterations": 2, "rows": 6, "max_steps": 6}
"""Four steps from one round of sampling to the next."""
PAIRS = {"generation_batch_size": 16, "rows": 12, "max_steps": 6}
"""Two steps from one round of sampling to the next."""
SYNCED = {"sync_ref_model": True, "ref_model_sync_steps": 2}
Run = tuple[str, dict[str, Any], tuple[int, ...]]
"""Verb, options (see `run_of`), and the steps after which it is cut."""
RUNS: list[Run] = [
    *((verb, {}, (EPOCH_END if index % 2 else MID_EPOCH,)) for index, verb in enumerate(CASES)),
    ("sft", {"packing": True, "max_length": 24, "rows": 24, "max_steps": 8, **DROPOUT}, (2,)),
    ("sft", {"stream": True, "rows": 9, "max_steps": 7, **DROPOUT}, (4,)),
    ("dpo", {"lora": True, "disable_dropout": False}, (MID_EPOCH,)),
    ("dpo", {"eval": True, "generate_during_eval": True, "eval_strategy": "epoch", **DROPOUT}, (EPOCH_END,)),
    ("kto", {**SYNCED, **DROPOUT}, (3,)),
    ("bco", {"delta_mode": "cumulative_pooled", **SYNCED}, (3,)),
    ("grpo", {"use_adaptive_entropy": True, "entropy_target": 9.0, "beta": 0.1, **SYNCED, **WINDOW, **DROPOUT}, (3,)),
    ("grpo", {"noisy": True, "dynamic_sampling": True}, (MID_EPOCH,)),
    ("ppo", {"num_iterations": 2, "num_mini_batches": 2, "whiten_rewards": True, "max_steps": 6}, (3,)),
    ("nash-md", PAIRS, (3,)),
    ("gkd", {"seq_kd": True, "lmbda": 0.5, **DROPOUT}, (2,)),
]
REST: list[Run] = [
    *((verb, {}, (MID_EPOCH if index % 2 else EPOCH_END,)) for index, verb in enumerate(CASES)),
    ("sft", {"stream": True, "rows": 9, "max_steps": 7, **DROPOUT}, (2,)),
    ("dpo", {"eval": True, "generate_during_eval": True, "eval_strategy": "epoch", **DROPOUT}, (4,)),
    ("dpo", {"precompute_ref_log_probs": True}, (MID_EPOCH,)),
    ("grpo", {"noisy": True, "dynamic_sampling": True}, (EPOCH_END,)),
    ("grpo", {"top_k": 8, "stream": True, "rows": 3, "max_steps": 6}, (MID_EPOCH,)),
    ("rloo", {**WINDOW, **DROPOUT}, (1, 3)),
    ("ppo", {"num_iterations": 2, "num_mini_batches": 2, "disable_dropout": False}, (2, 5)),
    ("online-dpo", PAIRS, (3,)),
    ("xpo-online", PAIRS, (3,)),
]
CUTS = [(index, cut) for index, (_, _, cuts) in enumerate(RUNS) for cut in cuts]


def name_of(cut: tuple[int, int]) -> str:
    verb, options, _ = RUNS[cut[0]]
    return f"{verb} {' '.join(options)} cut at {cut[1]}".replace("  ", " ")


MID_ACCUMULATION: list[tuple[int, signal.Signals, int]] = [
    *((index, signal.SIGTERM, 2) for index, verb in enumerate(CASES) if verb in ("sft", "bco")),
    *((index, signal.SIGTERM, 2) for index, (_, options, _) in enumerate(RUNS) if "num_iterations" in options),
    (CASES.index("dpo"), signal.SIGKILL, 1),
]
"""Runs that get a signal between two micro-batches of step 2, and the step they are gone on with from; the one that
is killed comes last."""


def cut_everywhere(runs: list[Run], folder: Path) -> tuple[list[Record], list[tuple[str, str, dict[str, Any], Any]]]:
    """Every run as it is when nobody stops it, and a job for each of its cuts: half by path, half by True."""
    wholes, jobs = [], []
    for index, (verb, options, cuts) in enumerate(runs):
        wholes.append(record(verb, folder / f"{index}", options, save_at=cuts))
        for cut in cuts:
            place = cut_off(folder / f"{index}", cut, folder / f"{index}-{cut}")
            jobs.append((verb, str(place), options, str(place / f"checkpoint-{cut}") if index % 2 else True))
    return wholes, jobs


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Record], list[Record], list[Record]]:
    """The runs as they are when nobody stops them; every cut, and every signal, gone on with in one new process."""
    folder = tmp_path_factory.mktemp("runs")
    signalled = [(*RUNS[index][:2], str(folder / f"{index}-{s.name}"), s) for index, s, _ in MID_ACCUMULATION]
    process = start(cut_short, [(verb, place, options, s) for verb, options, place, s in signalled])
    wholes, jobs = cut_everywhere(RUNS, folder)
    process.join(SECONDS)
    assert process.exitcode == -signal.SIGKILL
    jobs += [(verb, place, options, True) for verb, options, place, _ in signalled]
    resumed = in_a_new_process(jobs, folder / "resumed.pt")
    return wholes, resumed[: len(CUTS)], resumed[len(CUTS) :]


def in_a_new_process(jobs: list[Any], result: Path) -> list[Record]:
    process = start(go_on_into, jobs, str(result))
    process.join(SECONDS)
    assert process.exitcode == 0
    records: list[Record] = torch.load(result, weights_only=False)
    return records


@pytest.mark.parametrize("number", range(len(CUTS)), ids=[name_of(cut) for cut in CUTS])
def test_a_resumed_run_is_the_run_that_was_never_stopped(number: int, runs: Any) -> None:
    index, cut = CUTS[number]
    whole, resumed = runs[0][index], runs[1][number]
    assert whole["facts"]["step"] >= 4 and max(whole["rows"]) > cut
    assert unlike(whole, resumed, cut) == []


@pytest.mark.parametrize(
    "number",
    range(len(MID_ACCUMULATION)),
    ids=[f"{name_of((index, cut))} {s.name}" for index, s, cut in MID_ACCUMULATION],
)
def test_a_signal_in_the_middle_of_an_accumulation_changes_nothing(number: int, runs: Any) -> None:
    index, _, cut = MID_ACCUMULATION[number]
    assert unlike(runs[0][index], runs[2][number], cut) == []


@pytest.mark.slow
def test_all_other_cuts(tmp_path: Path) -> None:
    wholes, jobs = cut_everywhere(REST, tmp_path)
    resumed = iter(in_a_new_process(jobs, tmp_path / "resumed.pt"))
    for whole, (verb, options, cuts) in zip(wholes, REST, strict=True):
        for cut in cuts:
            assert unlike(whole, next(resumed), cut) == [], f"{verb} {options} cut at {cut}"
