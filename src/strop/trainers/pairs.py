"""What the methods on preference pairs share: completions in order (chosen, rejected), and their metrics."""

from __future__ import annotations

import torch

from strop.data import DatasetKind
from strop.records import Extreme, Mean, Scores
from strop.trainers.base import BaseTrainer
from strop.trainers.metrics import mean_of


class PairTrainer(BaseTrainer):
    """A trainer whose trees have two completions, the chosen one first."""

    dataset_kind = DatasetKind.PREFERENCE


def pair_metrics(scores: Scores, rewards: torch.Tensor, logps: torch.Tensor) -> dict[str, Mean | Extreme]:
    """Metrics of pairs: implicit `rewards` and `logps` (B, 2), no gradient, in the order chosen, rejected.

    `rewards/accuracies` is the share of pairs with a strictly higher chosen reward; ties count as wrong.
    """
    pairs = len(rewards)
    metrics: dict[str, Mean | Extreme] = {
        "rewards/chosen": Mean(rewards[:, 0].sum(), pairs),
        "rewards/rejected": Mean(rewards[:, 1].sum(), pairs),
        "rewards/accuracies": Mean((rewards[:, 0] > rewards[:, 1]).float().sum(), pairs),
        "rewards/margins": Mean((rewards[:, 0] - rewards[:, 1]).sum(), pairs),
        "logps/chosen": Mean(logps[:, 0].sum(), pairs),
        "logps/rejected": Mean(logps[:, 1].sum(), pairs),
    }
    chosen = scores.segment % 2 == 0
    if scores.mean_logit is not None:
        metrics["logits/chosen"] = mean_of(scores.mean_logit, chosen)
        metrics["logits/rejected"] = mean_of(scores.mean_logit, ~chosen)
    if scores.entropy is not None:
        metrics["entropy"] = mean_of(scores.entropy)
    if scores.top1 is not None:
        metrics["mean_token_accuracy"] = mean_of(scores.top1, chosen)
    return metrics
