"""What is logged can be recomputed from the completions that were saved beside it."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from strop.testing.cases import make_trainer, rows_for

STEPS = 3


def letters(completions: list[str], **kwargs: Any) -> list[float | None]:
    """Share of letters; abstains from completions of an odd length."""
    return [None if len(t) % 2 else round(sum(c.isalpha() for c in t) / max(len(t), 1), 2) for t in completions]


def short(completions: list[str], **kwargs: Any) -> list[float | None]:
    """1 for a short completion; abstains where `letters` does, so that some completions have no reward at all."""
    return [None if len(t) % 2 else float(len(t) < 8) for t in completions]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def groups_of(rows: list[dict[str, Any]], size: int) -> list[list[float]]:
    """Known rewards by group; completions of a prompt are neighbours."""
    return [[r["reward"] for r in rows[i : i + size] if r["reward"] is not None] for i in range(0, len(rows), size)]


def share(rows: list[Any], holds: Callable[[Any], bool]) -> float:
    return sum(map(holds, rows)) / len(rows)


@pytest.mark.parametrize(
    ("verb", "group"), [("grpo", 4), ("rloo", 4), ("ppo", 1), ("online-dpo", 2)], ids=["grpo", "rloo", "ppo", "pairs"]
)
def test_numbers_follow_from_saved_completions(verb: str, group: int, tmp_path: Path) -> None:
    trainer = make_trainer(
        verb,
        tmp_path,
        rows=rows_for(verb, 48),
        trainer={"reward_funcs": [letters, short]},
        reward_weights=[1.0, 0.5],
        per_device_train_batch_size=8,
        num_generations=group,
        max_steps=STEPS,
        num_iterations=1,
    )
    trainer.train()
    samples = lines(tmp_path / "samples.jsonl")
    logged = {line["step"]: line for line in lines(tmp_path / "metrics.jsonl") if "loss" in line}
    assert sorted(logged) == [1, 2, 3]
    assert any(row["reward"] is None for row in samples) and any(row["reward"] is not None for row in samples)
    for step, line in logged.items():
        rows = [row for row in samples if row["step"] == step - 1]  # sampled before the step that learns from them
        assert len(rows) in (8, 16)
        known = groups_of(rows, group)
        expected = {
            "reward": statistics.fmean(value for values in known for value in values),
            "reward_std": statistics.fmean(statistics.stdev(v) if len(v) > 1 else 0.0 for v in known),
            "frac_reward_zero_std": share(known, lambda v: len(v) < 2 or max(v) == min(v)),
            "completions/clipped_ratio": share(rows, lambda row: row["finish_reason"] != "stop"),
        }
        for name in ("letters", "short"):
            values = [row["rewards"][name] for row in rows]
            expected[f"rewards/{name}/mean"] = statistics.fmean(v for v in values if v is not None)
            expected[f"rewards/{name}/abstained_fraction"] = share(values, lambda v: v is None)
        assert {name: line[name] for name in expected} == pytest.approx(expected, abs=1e-9)
        totals = [(r["rewards"]["letters"], r["rewards"]["short"], r["reward"]) for r in rows]
        assert all(t is None if a is None else math.isclose(t, a + 0.5 * b) for a, b, t in totals)


@pytest.mark.parametrize("per_device", [1, 8])
def test_advantages_follow_from_saved_rewards(per_device: int, tmp_path: Path) -> None:
    trainer = make_trainer(
        "grpo",
        tmp_path,
        rows=rows_for("grpo", 4),
        per_device_train_batch_size=per_device,
        gradient_accumulation_steps=8 // per_device,
        num_generations=4,
        max_steps=1,
    )
    trainer.train()
    rows = lines(tmp_path / "samples.jsonl")
    for start in range(0, len(rows), 4):
        rewards = [row["reward"] for row in rows[start : start + 4]]
        mean, spread = statistics.fmean(rewards), statistics.stdev(rewards)
        expected = [(r - mean) / (spread + 1e-4) for r in rewards]
        assert [row["advantage"] for row in rows[start : start + 4]] == pytest.approx(expected, abs=1e-6)
