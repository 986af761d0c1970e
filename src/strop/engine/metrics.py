"""Metrics as sums and counts, added up over micro-batches, steps and ranks, and divided once, when they are logged."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_utils import IntervalStrategy

from strop.collectives import gather_numbers
from strop.device import read
from strop.records import Extreme, Mean, PushedMean

KINDS = {
    "sum": lambda a, b: [a[0] + b[0], a[1] + b[1]],
    "pushed": lambda a, b: [a[0] + b[0], a[1] + b[1]],
    "max": lambda a, b: [largest(a[0], b[0]), 1],
    "min": lambda a, b: [-largest(-a[0], -b[0]), 1],
}
RUN_NAMES = frozenset(
    ("loss", "step", "epoch", "grad_norm", "learning_rate", "num_tokens", "total_flos", "step_time", "runtime")
)
"""What a log line holds besides the means that are kept here."""


class MetricLog:
    """Running sums and extremes of one mode (train or eval)."""

    def __init__(self) -> None:
        self._sums: dict[str, list[Any]] = {}  # "kind:name" -> [total or extreme, count]

    def add(self, metrics: Mapping[str, Mean | Extreme]) -> None:
        for name, metric in metrics.items():
            if isinstance(metric, Extreme):
                kind, entry = ("max" if metric.largest else "min"), [_detached(metric.value), 1]
            else:
                kind = "pushed" if isinstance(metric, PushedMean) else "sum"
                entry = [_detached(metric.total), metric.count]
            key = f"{kind}:{name}"
            self._sums[key] = KINDS[kind](self._sums[key], entry) if key in self._sums else entry

    def __contains__(self, name: str) -> bool:
        """Whether something was added to this mean since the last call of `drain`."""
        return f"sum:{name}" in self._sums

    def state(self) -> dict[str, list[float]]:
        """The sums so far as numbers, read in one go: for a log line, or a checkpoint between two."""
        numbers = iter(read(value for entry in self._sums.values() for value in entry))
        return {key: [next(numbers) for _ in entry] for key, entry in self._sums.items()}

    def load(self, state: Mapping[str, list[float]]) -> None:
        if unknown := [key for key in state if key.split(":", 1)[0] not in KINDS]:
            raise KeyError(f"kind of metric for {unknown[0]}")
        self._sums = {key: list(entry) for key, entry in state.items()}

    def join(self, state: Mapping[str, list[float]]) -> None:
        self._sums = merge([self._sums, state])

    def drain(self, *, world_size: int = 1) -> dict[str, float]:
        """Values over everything added since the last call, on all ranks; a metric without a single item is left
        out."""
        own_sums, self._sums = self.state(), {}
        told = {f"{place}{key}": entry[place] for key, entry in own_sums.items() for place in (0, 1)}
        parts = gather_numbers(told, world_size)
        merged = merge({key[1:]: [part[key], part["1" + key[1:]]] for key in part if key[0] == "0"} for part in parts)
        values = {key: total / count for key, (total, count) in merged.items() if count > 0 and not _unseen(key, total)}
        own = {key.split(":", 1)[1]: value for key, value in values.items() if not key.startswith("pushed:")}
        pushed = {key.split(":", 1)[1]: value for key, value in values.items() if key.startswith("pushed:")}
        return own | {_pushed_name(name, own): value for name, value in pushed.items()}


def _pushed_name(name: str, own: Mapping[str, float]) -> str:
    """A reward function's name for its number; below `log_metric/` where the run has one of that name."""
    taken = name in own or name in RUN_NAMES or name.startswith(("eval_", "train_"))
    return f"log_metric/{name}" if taken else name


class LastWindow(TrainerCallback):
    """Asks for a log line at the end of a run, for the steps since the last one."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_log = args.logging_strategy != IntervalStrategy.NO

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if control.should_training_stop:
            control.should_log = args.logging_strategy != IntervalStrategy.NO


def merge(parts: Iterable[Mapping[str, list[float]]]) -> dict[str, list[float]]:
    """The states of several logs (of ranks) as one."""
    merged: dict[str, list[float]] = {}
    for part in parts:
        for key, entry in part.items():
            merged[key] = KINDS[key.split(":", 1)[0]](merged[key], entry) if key in merged else list(entry)
    return merged


def largest(a: Any, b: Any) -> Any:
    """The larger of two numbers or tensors (); the first where neither is."""
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        return torch.where(b > a, b, a)
    return max(a, b)


def _unseen(key: str, value: float) -> bool:
    """Whether an extreme is that of nothing."""
    return value == {"max": -math.inf, "min": math.inf}.get(key.split(":", 1)[0])


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, torch.Tensor) else value
