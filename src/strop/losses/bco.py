"""BCO: a binary classifier whose logit is the implicit reward; its running reward shift; its sample weights."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from strop.device import wide
from strop.losses.names import check_range
from strop.losses.numerics import choose

Number = Tensor | float
"""A number, or a tensor () of one."""


def bco_loss(rewards: Tensor, labels: Tensor, delta: Tensor | float, *, weights: Tensor | None = None) -> Tensor:
    """Binary cross entropy of each completion: softplus(-(r - delta)) if desirable, w softplus(r - delta) if not.

    Args:
        rewards: (B,) r = beta (log pi - log mu), summed over the completion.
        labels: (B,) bool or 0/1; true means desirable.
        delta: () reward shift, without gradient (`ema_balanced`, `cumulative_pooled`).
        weights: (B,) density ratios w (`density_ratio_weights`); read on undesirable rows only. None: 1.

    Returns:
        (B,); a step's loss is their mean over all rows.

    Source: arXiv 2404.04656.
    """
    labels = torch.as_tensor(labels, device=rewards.device).bool()
    delta = delta.detach().to(rewards) if isinstance(delta, Tensor) else delta
    logit = choose(labels, 1.0, -1.0, rewards) * (rewards - delta)  # (B,)
    if weights is None:
        return softplus(-logit)
    return torch.where(labels, torch.ones_like(rewards), weights.detach().to(rewards.dtype)) * softplus(-logit)


def discriminator_loss(logratios: Tensor, labels: Tensor, *, beta: float = 1.0) -> Tensor:
    """BCO without a shift, D = sigma(beta u): -log D on desirable rows, -log(1 - D) on the others.

    Args:
        logratios: (B,) u = log pi - log mu, summed over the completion, nats.
        labels: (B,) bool or 0/1.
        beta: scale of the logit. At 1, summed log-ratios saturate it within a few steps.

    Returns:
        (B,); a step's loss is the mean over desirable rows plus the mean over undesirable ones (`class_terms`).
    """
    return bco_loss(beta * logratios, labels, 0.0)


class ClassSums(NamedTuple):
    """Sums and counts of rewards by class, to be added up over micro-batches and ranks of a step."""

    desirable_total: Number = 0.0
    desirable_count: Number = 0.0
    undesirable_total: Number = 0.0
    undesirable_count: Number = 0.0


def class_sums(rewards: Tensor, labels: Tensor) -> ClassSums:
    """`ClassSums` of rewards (B,) with labels (B,), tensors () on their device."""
    labels = torch.as_tensor(labels, device=rewards.device).bool()
    rewards = wide(rewards.detach())
    good, bad = rewards.masked_fill(~labels, 0.0), rewards.masked_fill(labels, 0.0)
    return ClassSums(good.sum(), wide(labels).sum(), bad.sum(), wide(~labels).sum())


class BalancedMean(NamedTuple):
    """Running mean reward of each class; None, or not a number, until the class has been seen."""

    desirable: Number | None = None
    undesirable: Number | None = None

    @property
    def delta(self) -> Number:
        """The shift: the middle between both means. A class never seen counts 0, its reward where pi = mu."""
        return 0.5 * (_or_zero(self.desirable) + _or_zero(self.undesirable))


def _or_zero(mean: Number | None) -> Any:
    if isinstance(mean, Tensor):
        return mean.nan_to_num(nan=0.0)
    return 0.0 if mean is None or math.isnan(mean) else mean


def ema_balanced(state: BalancedMean, sums: ClassSums, *, decay: float = 0.99) -> BalancedMean:
    """The paper's shift, delta = (E_desirable[r] + E_undesirable[r]) / 2, each mean an exponential moving average.

    new = decay * old + (1 - decay) * mean of the step; the first step of a class sets it; a class that is absent
    from the step keeps its mean. Update before the loss uses `state.delta`.

    Args:
        state: the running means.
        sums: rewards of the whole step, all ranks.
        decay: in [0, 1). The paper does not give it.

    Returns:
        as the sums are: of tensors tensors, for which nothing waits.

    Raises:
        ConfigError: decay out of range.

    Source: arXiv 2404.04656.
    """
    check_range(decay, "decay", 0.0, 1.0)
    return BalancedMean(
        _ema(state.desirable, sums.desirable_total, sums.desirable_count, decay),
        _ema(state.undesirable, sums.undesirable_total, sums.undesirable_count, decay),
    )


def _ema(old: Number | None, total: Number, count: Number, decay: float) -> Number | None:
    if not isinstance(total, Tensor) or not isinstance(count, Tensor):
        if count == 0:
            return old
        mean = total / count
        return mean if old is None or old != old else decay * old + (1 - decay) * mean
    before = old if isinstance(old, Tensor) else torch.full_like(total, math.nan if old is None else old)
    now = total / count  # not a number where the class is absent
    moved = torch.where(before.isnan(), now, decay * before + (1 - decay) * now)
    return torch.where(count > 0, moved, before)


class PooledMean(NamedTuple):
    """Sum of all rewards so far, and how many they were."""

    total: Number = 0.0
    seen: Number = 0.0

    @property
    def delta(self) -> Number:
        """The shift: the mean of all rewards so far."""
        return self.total / (self.seen.clamp(min=1) if isinstance(self.seen, Tensor) else max(self.seen, 1.0))


def cumulative_pooled(state: PooledMean, sums: ClassSums) -> PooledMean:
    """TRL's shift: the mean of all rewards of the run, both classes pooled, the current step included.

    Differs from the paper: unlike `ema_balanced` it moves with the share of desirable rows and never forgets.
    """
    return PooledMean(
        state.total + sums.desirable_total + sums.undesirable_total,
        state.seen + sums.desirable_count + sums.undesirable_count,
    )


def density_ratio_weights(p_desirable: Tensor, *, min_ratio: float = 0.5, max_ratio: float = 10.0) -> Tensor:
    """Weights of undesirable rows under a shift of prompts between classes: clamp(p / (1 - p + 1e-8)).

    Args:
        p_desirable: (B,) probability, by a classifier of prompt embeddings, that a prompt is of the desirable class.
        min_ratio, max_ratio: bounds of the weight.

    Returns:
        (B,) without gradient.

    Source: arXiv 2404.04656 (underlying distribution matching).
    """
    p_desirable = p_desirable.detach()
    return (p_desirable / (1 - p_desirable + 1e-8)).clamp(min_ratio, max_ratio)
