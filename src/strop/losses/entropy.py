"""Entropy in policy losses: which tokens are uncertain enough to learn from, and a bonus for staying uncertain."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from strop.losses.names import check_range


def entropy_threshold(entropy: Tensor, *, top_quantile: float) -> Tensor:
    """The entropy from which on a token belongs to the top share, ().

    The (1 - top_quantile) quantile with linear interpolation.

    Args:
        entropy: (N,) entropies of all scored tokens of the step, all ranks, nats.
        top_quantile: share of tokens to keep, in (0, 1]. 1 keeps all.

    Raises:
        ConfigError: top_quantile out of range.

    Source: arXiv 2506.01939.
    """
    check_range(top_quantile, "top_entropy_quantile", torch.finfo(torch.float32).tiny, 1.0, closed_high=True)
    if entropy.numel() == 0 or top_quantile == 1.0:
        return entropy.new_full((), -torch.inf)
    ordered = entropy.detach().sort().values  # (N,)
    place = (1.0 - top_quantile) * (ordered.numel() - 1)
    low = int(place)
    return torch.lerp(ordered[low], ordered[min(low + 1, ordered.numel() - 1)], place - low)


def top_entropy_mask(entropy: Tensor, *, top_quantile: float, threshold: Tensor | None = None) -> Tensor:
    """Which tokens are among the `top_quantile` share by entropy, (N,) bool.

    Args:
        entropy: (N,) nats.
        top_quantile: share of tokens to keep, in (0, 1].
        threshold: () of the whole step (`entropy_threshold`); None takes these tokens for the whole step.

    The denominators of the loss stay those of all tokens.
    """
    threshold = entropy_threshold(entropy, top_quantile=top_quantile) if threshold is None else threshold
    return entropy.detach() >= threshold


def entropy_bonus(entropy: Tensor, *, keep: Tensor | None = None) -> Tensor:
    """-H of each token, 0 where `keep` is 0, (N,): a loss term whose weight is the entropy coefficient."""
    return -entropy if keep is None else -entropy * keep.to(entropy.dtype)


def adapt_entropy_coef(
    coef: Tensor | float, mean_entropy: Tensor | float, *, target: float, step: float, minimum: float, maximum: float
) -> Any:
    """The coefficient of the next step: `step` more while the mean entropy is at or below `target`, less above.

    Args:
        coef: the current coefficient.
        mean_entropy: token mean over the whole step, nats.
        target: entropy to hold, nats.
        step, minimum, maximum: of the coefficient.

    Returns:
        a number, or a tensor () where the entropy is one: nothing waits for it.

    The bonus itself is paid only while the last step's mean entropy was at or below the target.
    """
    if isinstance(mean_entropy, Tensor):
        start = torch.zeros_like(mean_entropy) + coef
        return torch.where(mean_entropy <= target, start + step, start - step).clamp(minimum, maximum)
    moved = coef + step if mean_entropy <= target else coef - step
    return min(max(moved, minimum), maximum)
