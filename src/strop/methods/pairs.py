"""What the methods on preference pairs share: completions in order (chosen, rejected), and their metrics."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from strop.data import DatasetKind
from strop.engine.step import scored_tokens
from strop.engine.trainer import BaseTrainer
from strop.losses import nll_loss
from strop.losses.metrics import Metrics, mean_of, preference_metrics
from strop.online.evaluation_samples import EvaluationSamples
from strop.records import Counts, Example, Scores


class PairTrainer(BaseTrainer):
    """A trainer whose trees have two completions, the chosen one first."""

    dataset_kind = DatasetKind.PREFERENCE
    tree_completions = 2
    evaluation_samples = EvaluationSamples

    def counts(self, examples: Sequence[Example]) -> Counts:
        chosen = float(sum(scored_tokens(example, 0) for example in examples))
        return {**super().counts(examples), "chosen_tokens": chosen}


def pair_metrics(scores: Scores, rewards: torch.Tensor, logps: torch.Tensor) -> Metrics:
    """Metrics of pairs: implicit `rewards` and `logps` (B, 2), in the order chosen, rejected; and of their tokens."""
    metrics = preference_metrics(rewards[:, 0], rewards[:, 1])
    metrics |= {"logps/chosen": mean_of(logps[:, 0]), "logps/rejected": mean_of(logps[:, 1])}
    chosen = scores.segment % 2 == 0
    if scores.mean_logit is not None:
        metrics["logits/chosen"] = mean_of(scores.mean_logit, chosen)
        metrics["logits/rejected"] = mean_of(scores.mean_logit, ~chosen)
    if scores.entropy is not None:
        metrics["entropy"] = mean_of(scores.entropy)
    if scores.top1 is not None:
        metrics["mean_token_accuracy"] = mean_of(scores.top1, chosen)
    return metrics


def chosen_nll(scores: Scores) -> tuple[torch.Tensor, torch.Tensor]:
    """Negative log-likelihood of the chosen completions' tokens, 0 at all others, and which are theirs, (N,) each.

    Picking them out would make the host wait for their number.
    """
    chosen = scores.segment % 2 == 0
    return torch.where(chosen, nll_loss(scores.logps), torch.zeros_like(scores.logps)), chosen
