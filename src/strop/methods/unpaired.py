"""What the methods on labelled single completions share: counts by class, metrics by class, advice on weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from strop.data import DatasetKind
from strop.engine.trainer import BaseTrainer
from strop.losses.metrics import Metrics, class_metrics, mean_of
from strop.online.evaluation_samples import EvaluationSamples
from strop.records import Batch, Counts, Example, Mean, Scores
from strop.settings.config import TrainerConfig
from strop.watch.say import say

ADVISED_RATIO = (1.0, 1.5)


class UnpairedTrainer(BaseTrainer):
    """A trainer whose rows carry a `label` in their extras; the first completion of a tree is the row's own."""

    dataset_kind = DatasetKind.UNPAIRED_PREFERENCE
    evaluation_samples = EvaluationSamples

    def counts(self, examples: Sequence[Example]) -> Counts:
        desirable = float(sum(bool(e.extras["label"]) for e in examples))
        return {**super().counts(examples), "desirable": desirable, "undesirable": len(examples) - desirable}

    def labels(self, batch: Batch) -> list[int]:
        return [int(bool(example.extras["label"])) for example in batch.examples]

    def derived_metrics(self, metrics: dict[str, float]) -> dict[str, float]:
        """`rewards/margins`: mean reward of the desirable minus the undesirable rows, where both classes were
        present."""
        if "rewards/chosen" in metrics and "rewards/rejected" in metrics:
            metrics["rewards/margins"] = metrics["rewards/chosen"] - metrics["rewards/rejected"]
        return metrics


def label_metrics(
    scores: Scores,
    own: torch.Tensor,
    labels: torch.Tensor,
    rewards: torch.Tensor,
    logps: torch.Tensor,
    **once_per_step: torch.Tensor | float | None,
) -> Metrics:
    """Metrics by class of rows (B,): `chosen` are the desirable ones. A class without rows adds nothing.

    `own` (S,) tells a row's own completion from others in the batch. `once_per_step` values are logged as they are.
    """
    metrics = class_metrics(rewards, labels) | class_metrics(logps, labels, prefix="logps")
    tokens = own[scores.segment]  # (N,)
    row = (own.long().cumsum(0) - 1).clamp(min=0)  # (S,) whose label is that of a completion of its own
    if scores.mean_logit is not None:
        metrics |= class_metrics(scores.mean_logit, labels[row[scores.segment]], prefix="logits", keep=tokens)
    if scores.entropy is not None:
        metrics["entropy"] = mean_of(scores.entropy, tokens)
    for name, value in once_per_step.items():
        if value is not None:
            metrics[name] = Mean(value * len(labels), len(labels))
    return metrics


def advise_weights(args: TrainerConfig, dataset: Any, desirable_weight: float, undesirable_weight: float) -> None:
    """Say so if the classes' weights times counts are outside the advised ratio, and which weights would fit.

    Only for sets that are tokenised up front: counting the labels of a larger one would read it whole.
    """
    if not getattr(dataset, "eager", False):
        return
    good = sum(bool(example.extras["label"]) for example in dataset)
    bad = len(dataset) - good
    if not good or not bad or not desirable_weight or not undesirable_weight:
        return
    ratio = desirable_weight * good / (undesirable_weight * bad)
    low, high = ADVISED_RATIO
    if low <= ratio <= high:
        return
    fit_low, fit_high = (bound * undesirable_weight * bad / good for bound in ADVISED_RATIO)
    say(
        args,
        f"{good} desirable and {bad} undesirable rows: desirable_weight x count over undesirable_weight x count is "
        f"{ratio:.2f}; {low:g} to {high:g} is advised. Set desirable_weight between {fit_low:.2f} and {fit_high:.2f}.",
    )
