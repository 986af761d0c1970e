"""The answer to one scoring call: a number per reward and completion, and an account of those that are missing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from strop.records import Mean


@dataclass(slots=True)
class RewardCounts:
    """What became of one reward's rows. rows = scored + abstained + errors + timeouts."""

    rows: int = 0
    abstained: int = 0  # the function returned None
    errors: int = 0  # raised, died, or returned something that is not a finite number
    timeouts: int = 0  # did not return in time
    penalised: int = 0  # of errors and timeouts: rows that were given the penalty


@dataclass(slots=True)
class RewardTable:
    """Rewards of one batch of completions.

    `values` is NaN where a reward abstained, or failed under `on_error="skip"`; it never holds an infinity.
    """

    values: np.ndarray  # (n_rewards, n_rows) float64
    names: list[str]  # (n_rewards,)
    weights: np.ndarray  # (n_rewards,) float64
    counts: dict[str, RewardCounts]
    metrics: dict[str, Mean] = field(default_factory=dict)  # pushed by log_metric
    extras: dict[str, list[Any]] = field(default_factory=dict)  # pushed by log_extra: name -> (n_rows,)
    failures: list[str] = field(default_factory=list)  # the contained failures in words, at most 20

    def total(self) -> np.ndarray:
        """Weighted sum over the rewards that did not abstain, (n_rows,) float64; NaN where all abstained.

        total_i = sum over k with values_ki not NaN of weights_k * values_ki
        """
        present = ~np.isnan(self.values)  # (n_rewards, n_rows)
        summed = (np.where(present, self.values, 0.0) * self.weights[:, None]).sum(axis=0)  # (n_rows,)
        return np.where(present.any(axis=0), summed, np.nan)

    def log_metrics(self) -> dict[str, Mean]:
        """What a run logs: the mean of every reward, the share of rows with each kind of fate, pushed metrics.

        Keys are `rewards/{name}/mean`, and `rewards/{name}/{fate}_fraction` where a fate happened at all.
        """
        logged = dict(self.metrics)
        for index, name in enumerate(self.names):
            present = self.values[index][~np.isnan(self.values[index])]
            logged[f"rewards/{name}/mean"] = Mean(float(present.sum()), float(present.size))
            counts = self.counts[name]
            for fate in ("abstained", "errors", "timeouts", "penalised"):
                if count := getattr(counts, fate):
                    logged[f"rewards/{name}/{fate}_fraction"] = Mean(float(count), float(counts.rows))
        return logged
