"""Completions that were not drawn from quite the policy they are learned under: weights, and what to leave out."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from strop.losses.names import IMPORTANCE_SAMPLING_MODES, check_name
from strop.losses.numerics import importance_ratio
from strop.losses.segments import segment_mean, segment_sum


def sampler_weights(
    old_logps: Tensor,
    sampler_logps: Tensor,
    segment: Tensor,
    num_completions: int,
    *,
    mode: str = "sequence_mask",
    clip_max: float | None = 3.0,
    clip_min: float | None = None,
) -> Tensor:
    """Weights that correct for a rollout engine whose distribution is not quite the policy's.

    w = pi_old / pi_sampler of the token (`token_*`) or of the whole completion (`sequence_*`); `*_truncate` clamps w
    to [clip_min, clip_max], `*_mask` sets it to 0 outside.

    Args:
        old_logps: (N,) log-probs under the policy that the rollout was meant to be drawn from, nats.
        sampler_logps: (N,) what the engine reported; NaN (unknown) counts as equal.
        segment, num_completions: see `policy_loss_flat`.
        mode: one of `IMPORTANCE_SAMPLING_MODES`.
        clip_max, clip_min: bounds of w; None: none.

    Returns:
        (N,) without gradient. Denominators stay those of all tokens, masked ones included.
    """
    check_name(mode, IMPORTANCE_SAMPLING_MODES, "importance_sampling_mode")
    gap = known_gap(old_logps, sampler_logps)  # (N,)
    if mode.startswith("sequence"):
        gap = segment_sum(gap, segment, num_completions)[segment]
    return bounded_weights(gap, mode=mode, clip_max=clip_max, clip_min=clip_min)


def completion_weights(
    old_logps: Tensor,
    sampler_logps: Tensor,
    segment: Tensor,
    num_completions: int,
    *,
    mode: str = "sequence_mask",
    clip_max: float | None = 3.0,
    clip_min: float | None = None,
) -> Tensor:
    """The weights of whole completions, (S,) without gradient: `sampler_weights` in its modes `sequence_*`."""
    gap = segment_sum(known_gap(old_logps, sampler_logps), segment, num_completions)  # (S,)
    return bounded_weights(gap, mode=mode, clip_max=clip_max, clip_min=clip_min)


def known_gap(old_logps: Tensor, sampler_logps: Tensor) -> Tensor:
    """log pi_old - log pi_sampler of each token, (N,) without gradient; 0 where the sampler said nothing."""
    gap = (old_logps - sampler_logps).detach()
    return torch.where(gap.isnan(), torch.zeros_like(gap), gap)


def bounded_weights(gap: Tensor, *, mode: str, clip_max: float | None, clip_min: float | None) -> Tensor:
    """exp of a difference of log-probs, any shape, clamped or masked by the bounds."""
    weights = importance_ratio(gap)
    low, high = 0.0 if clip_min is None else clip_min, math.inf if clip_max is None else clip_max
    if mode.endswith("truncate"):
        return weights.clamp(low, high)
    return weights * ((weights >= low) & (weights <= high)).to(weights.dtype)


def off_policy_mask(
    logps: Tensor,
    sampler_logps: Tensor,
    advantages: Tensor,
    segment: Tensor,
    num_completions: int,
    *,
    threshold: float,
) -> Tensor:
    """Which tokens to learn from when stale failures are left out, (N,) bool: give it as `keep`.

    Dropped is a completion with A < 0 and mean_t (log pi_sampler - log pi) > threshold (nats per token). NaN (unknown)
    in sampler_logps counts as equal.

    Source: DeepSeek-V3.2, arXiv 2512.02556, Eq. 9.
    """
    gap = (sampler_logps - logps).detach().nan_to_num(nan=0.0)
    drift = segment_mean(gap, segment, num_completions)[segment]  # (N,)
    return (advantages >= 0) | (drift <= threshold)
