"""Evaluation: losses over a whole set as one mean, summed batch by batch; no logits are kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from transformers.trainer_utils import EvalPrediction

from strop.collectives import sum_over_ranks
from strop.device import read, wide
from strop.records import Counts, Example, LossOutput


def own_metrics(compute: Callable[..., Any], predictions: np.ndarray | None, labels: np.ndarray | None) -> Any:
    """What the user's `compute_metrics` gives; an error in it is told what it was given, which are no logits."""
    try:
        return compute(EvalPrediction(predictions=predictions, label_ids=labels))
    except Exception as error:
        shape, right = None if predictions is None else predictions.shape, "None" if labels is None else "one per row"
        error.add_note(
            f"compute_metrics was given predictions of shape {shape}, each row what its `predictions` says "
            f"(logits are never kept), and label_ids: {right}."
        )
        raise


class EvaluationSums:
    """What an evaluation adds up on this rank: loss terms, the counts that divide them, predictions where asked for."""

    def __init__(self, *, predicts: bool = False) -> None:
        self.rows, self.predicts = 0, predicts
        self._terms: dict[str, Any] = {}  # "position:count's name" -> weighted sum, a tensor ()
        self._counts: Counts = {}
        self._predicted: list[tuple[list[int], np.ndarray, np.ndarray | None]] = []  # row numbers, predictions, labels

    def add(self, output: LossOutput) -> None:
        for position, term in enumerate(output.terms):
            key = f"{position}:{term.per}"
            self._terms[key] = self._terms.get(key, 0.0) + term.weight * wide(term.values.detach().sum())

    def count(self, own: Counts, *, rows: int) -> None:
        self.rows += rows
        self._counts |= {name: self._counts.get(name, 0.0) + number for name, number in own.items()}

    def keep(self, examples: Sequence[Example], predictions: torch.Tensor, labels: list[int] | None = None) -> None:
        """Predictions for some rows, (B, ...), and what is right for each, where that is known."""
        right = None if labels is None else np.asarray(labels, dtype=np.int64)
        self._predicted.append(([example.row for example in examples], predictions.float().cpu().numpy(), right))

    def mean_loss(self, world_size: int) -> dict[str, float]:
        """`loss` over all ranks; not a number where there was no tree at all (online: no pair)."""
        sums = dict(zip(self._terms, read(self._terms.values()), strict=True))
        counts = sum_over_ranks(self._counts, world_size)
        totals = sum_over_ranks(sums, world_size)
        shares = [total / max(counts.get(key.split(":", 1)[1], 0.0), 1.0) for key, total in totals.items()]
        return {"loss": sum(shares) if shares else math.nan}

    def all_predictions(self, world_size: int) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Predictions and labels of all ranks in the order of the rows; None where there are none."""
        parts = self._predicted
        if world_size > 1:
            everyone: list[Any] = [None] * world_size
            torch.distributed.all_gather_object(everyone, parts)
            parts = [part for rank in everyone for part in rank]
        if not parts:
            return None, None
        order = np.argsort(np.concatenate([rows for rows, _, _ in parts]), kind="stable")
        labels = [right for _, _, right in parts if right is not None]
        return (
            np.concatenate([values for _, values, _ in parts])[order],
            np.concatenate(labels)[order] if len(labels) == len(parts) else None,
        )
