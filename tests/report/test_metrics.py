"""The numbers of a run: every curve as the lines say it, in memory that grows by the number and not by the line."""

from __future__ import annotations

import random
import tracemalloc
from typing import Any

import pytest

from strop.report import metrics
from strop.report.metrics import MOST_NAMES, Metrics


def line_by_line(lines: list[dict[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """What the curves must be, in the plainest way."""
    points: dict[str, dict[float, float]] = {}
    for line in lines:
        for name, value in line.items():
            if (
                name != "step"
                and isinstance(value, (int, float))
                and not isinstance(value, bool)
                and abs(value) < 1e300
            ):
                points.setdefault(name, {})[float(line.get("step", 0))] = float(value)
    return {name: sorted(found.items()) for name, found in points.items()}


def test_curves_are_what_the_lines_say_in_whatever_order_and_company(monkeypatch) -> None:
    monkeypatch.setattr(metrics, "BLOCK", 5)
    draw = random.Random(7)
    odd = [None, True, "x", float("nan"), float("inf"), [1.0], 3, 10**400]
    lines = []
    for step in [*range(40), *range(20, 60)]:  # gone on with from step 20, which says some of it again
        names = draw.sample(["loss", "reward", "kl", "eval_loss"], draw.randint(0, 4))
        lines.append({"step": step} | {name: draw.choice([draw.random(), draw.choice(odd)]) for name in names})
    lines.append({"loss": 0.5})
    found = Metrics(lines)
    assert {n: list(map(tuple, curve.tolist())) for n, curve in found.curves.items()} == line_by_line(lines)
    assert found.lines == len(lines) and found.last_step == 59 and not found.full


def test_a_name_in_every_line_is_bounded() -> None:
    found = Metrics({"step": i, f"m{i}": 1.0, f"train_{i}": 1.0} for i in range(3 * MOST_NAMES))
    assert found.full and len(found.curves) + len(found.totals) < 2 * MOST_NAMES
    assert found.lines == 3 * MOST_NAMES


@pytest.mark.parametrize("often", [20_000, 2], ids=["alike", "in turns"])
def test_a_long_run_takes_little_memory(often: int) -> None:
    """Lines of the same names are taken in together; those of others, as where a reward abstains now and then, not."""
    names = ("loss", "reward", "kl", "entropy", "step_time")
    tracemalloc.start()
    found = Metrics({"step": i, **{name: i + 0.5 for name in names[: 5 - (i % often == 1)]}} for i in range(20_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found.curves["kl"]) == 20_000
    assert peak < 6 * 2**20  # 16 bytes for each of 100,000 points, and one block of lines
