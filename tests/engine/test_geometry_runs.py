"""The reduction law over whole runs of all fifteen: clipped gradients, weights and metrics, also over two processes.

A run has a full step of eight rows and a short one of a single row (so that one of two ranks has none), shuffled.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.geometry import Steps, differences, record_run, record_runs
from tests.support.processes import run_ranks

from strop.testing.cases import CASES

TOLERANCE = 1e-10
LOSS_TOLERANCE = 1e-6  # the parent adds losses up in float32
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("sft", {"packing": True}),
    ("reward", {"center_rewards_coefficient": 0.1}),
    ("dpo", {"loss_type": ["aot", "bco_pair", "sft"], "ld_alpha": 0.5}),
    ("kto", {"loss_type": "apo_zero_unpaired"}),
    ("bco", {"loss_type": "discriminator"}),
    ("cpo", {"loss_type": "contrastive_hidden"}),
    ("prm", {"train_on_last_step_only": True}),
    ("ppo", {"whiten_rewards": True, "num_mini_batches": 2, "num_iterations": 2}),
    ("grpo", {"scale_rewards": "batch", "beta": 0.1, "use_adaptive_entropy": True, "entropy_target": 1.0}),
    ("grpo", {"top_entropy_quantile": 0.5, "entropy_coef": 0.01, "mask_truncated_completions": True}),
    ("grpo", {"generation_batch_size": 16, "num_iterations": 2, "loss_type": "bnpo"}),
    ("rloo", {"normalize_advantages": True, "generation_batch_size": 16, "num_iterations": 2}),
    ("nash-md", {"objective": "adversarial"}),
    ("gkd", {"lmbda": 1.0}),
]
RUNS: list[tuple[str, dict[str, Any]]] = [*((verb, {}) for verb in CASES), *VARIANTS]
RUNS = [(verb, {"num_iterations": 2, **o} if verb == "ppo" else o) for verb, o in RUNS]
NAMES = [f"{verb} {', '.join(map(str, options.values()))}".strip() for verb, options in RUNS]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: Any) -> Callable[[int], Steps]:
    """The run that the others are compared with: eight rows at once, one process."""
    known: dict[int, Steps] = {}

    def run(index: int) -> Steps:
        if index not in known:
            verb, options = RUNS[index]
            known[index] = record_run(verb, tmp_path_factory.mktemp("whole"), 8, 1, **options)
        return known[index]

    return run


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: Any) -> list[list[Steps]]:
    """All runs as two rows at once, two accumulations, two gloo processes; what each rank saw."""
    folder = tmp_path_factory.mktemp("ranks")
    return run_ranks(record_runs, 2, folder, RUNS, str(folder), 2, 2)


def assert_same(first: Steps, second: Steps) -> None:
    found = differences(first, second)
    bad = {name: gap for name, gap in found.items() if gap > (LOSS_TOLERANCE if name == "loss" else TOLERANCE)}
    assert not bad


def assert_learning(run: Steps) -> None:
    assert len(run.gradients) >= 2 or "packing" in str(RUNS)
    first = run.gradients[0]
    norm = float(torch.sqrt(sum((g.double() ** 2).sum() for g in first.values())))
    assert norm == pytest.approx(0.05, rel=1e-4)  # clipped
    assert run.metrics[0]["grad_norm"] > 0.05


@pytest.mark.parametrize("index", range(len(CASES)), ids=NAMES[: len(CASES)])
def test_accumulated_is_whole(index: int, whole: Callable[[int], Steps], tmp_path: Path) -> None:
    verb, options = RUNS[index]
    assert_learning(whole(index))
    for at, cut in enumerate(((4, 2), (1, 8))):
        assert_same(whole(index), record_run(verb, tmp_path / str(at), *cut, **options))


@pytest.mark.parametrize("index", range(len(CASES), len(RUNS)), ids=NAMES[len(CASES) :])
def test_options_that_tie_rows_to_each_other_obey_the_law(
    index: int, whole: Callable[[int], Steps], tmp_path: Path
) -> None:
    verb, options = RUNS[index]
    assert_learning(whole(index))
    assert_same(whole(index), record_run(verb, tmp_path, 1, 8, **options))


@pytest.mark.parametrize("index", range(len(RUNS)), ids=NAMES)
def test_two_processes_are_one(index: int, whole: Callable[[int], Steps], two_ranks: list[list[Steps]]) -> None:
    for rank in two_ranks:
        assert_same(whole(index), rank[index])
