"""Process reward models: a two-class loss at the end of every step, and scores of whole solutions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from strop.losses.names import STEP_SCORE_MODES, check_name
from strop.losses.segments import segment_last, to_rows


def stepwise_loss(step_logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of each step: softplus(d) - c d, d = z_1 - z_0.

    For c in {0, 1} this is the two-class cross entropy; for c between them the binary cross entropy of a soft label.

    Args:
        step_logits: (N, 2) logits (bad, good) at the last token of each step, unshifted.
        labels: (N,) c in [0, 1]; bool, int or float.

    Returns:
        (N,); a step's loss is their mean over all labelled positions.

    Source: arXiv 2211.14275, 2305.20050, 2312.08935.
    """
    logit = step_logits[..., 1] - step_logits[..., 0]  # (N,)
    return softplus(logit) - labels.to(logit.dtype) * logit


def step_probabilities(step_logits: Tensor) -> Tensor:
    """Probability that a step is good, sigma(z_1 - z_0), (N,)."""
    return torch.sigmoid(step_logits[..., 1] - step_logits[..., 0])


def last_steps(segment: Tensor, num_completions: int) -> Tensor:
    """Which of the labelled positions is the last of its completion, (N,) bool (`train_on_last_step_only`)."""
    return segment_last(segment, num_completions)


def solution_scores(probabilities: Tensor, segment: Tensor, num_completions: int, *, mode: str = "min") -> Tensor:
    """Score of a whole solution: the smallest step probability, or their product; 1 without steps.

    Args:
        probabilities: (N,) from `step_probabilities`.
        segment: (N,) completion of each step.
        num_completions: S.
        mode: `min` or `product`.

    Returns:
        (S,).

    Raises:
        ConfigError: an unknown mode.
    """
    check_name(mode, STEP_SCORE_MODES, "mode")
    rows = to_rows(probabilities, segment, num_completions, fill=1.0)  # (S, most steps)
    if rows.shape[1] == 0:
        return probabilities.new_ones(num_completions)
    return rows.min(dim=1).values if mode == "min" else rows.prod(dim=1)
