"""Metrics of the losses, as sums and counts: they add up over micro-batches and ranks before they are divided.

All take numbers and give `Mean`s, or `Extreme`s for the least and the greatest; none has a gradient. Names are those of
TRL's logs.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from strop.device import wide
from strop.losses.kl import kl_estimate
from strop.losses.names import CLIPPED_LOSS_TYPES
from strop.losses.numerics import EXP_LIMIT, importance_ratio, logsigmoid
from strop.losses.policy import log_importance_weights, vespo_gate
from strop.losses.policy_options import PolicyOptions
from strop.losses.sampler_correction import sampler_weights
from strop.losses.segments import segment_lengths, segment_mean
from strop.records import Extreme, Mean

Metrics = dict[str, Mean | Extreme]


def mean_of(values: Tensor, keep: Tensor | None = None) -> Mean:
    """`Mean` over the elements where `keep` is true (default: all); how many those are is not asked of the device."""
    values = wide(values.detach())
    if keep is None:
        return Mean(values.sum(), float(values.numel()))
    return Mean(torch.where(keep, values, torch.zeros_like(values)).sum(), wide(keep).sum())


def greatest_of(values: Tensor, keep: Tensor) -> Extreme:
    """`Extreme` of the largest element where `keep` is true; where that is nowhere it is left out of the log."""
    return Extreme(values.masked_fill(~keep, -math.inf).amax())


def least_of(values: Tensor, keep: Tensor) -> Extreme:
    """As `greatest_of`, of the smallest."""
    return Extreme(values.masked_fill(~keep, math.inf).amin(), largest=False)


def preference_metrics(rewards_chosen: Tensor, rewards_rejected: Tensor) -> Metrics:
    """`rewards/chosen|rejected|margins|accuracies` of pairs (B,), (B,); a tie is not accurate."""
    return {
        "rewards/chosen": mean_of(rewards_chosen),
        "rewards/rejected": mean_of(rewards_rejected),
        "rewards/margins": mean_of(rewards_chosen - rewards_rejected),
        "rewards/accuracies": mean_of(rewards_chosen > rewards_rejected),
    }


def class_metrics(values: Tensor, labels: Tensor, *, prefix: str = "rewards", keep: Tensor | None = None) -> Metrics:
    """`<prefix>/chosen` over desirable rows and `<prefix>/rejected` over the others, of values (B,), labels (B,); of
    those where `keep` is true, if it is given."""
    labels = torch.as_tensor(labels, device=values.device).bool()
    good, bad = (labels, ~labels) if keep is None else (labels & keep, ~labels & keep)
    return {f"{prefix}/chosen": mean_of(values, good), f"{prefix}/rejected": mean_of(values, bad)}


def exponential_metrics(losses: Tensor) -> Metrics:
    """`exponent_clamped_ratio` of e^-a losses (B,): the share with -a beyond the bound, where they go on straight."""
    return {"exponent_clamped_ratio": mean_of(losses > math.exp(EXP_LIMIT))}


def orpo_metrics(log_odds_ratio: Tensor) -> Metrics:
    """`log_odds_chosen`, the mean log odds ratio, and `log_odds_ratio`, the mean of its log-sigmoid (<= 0)."""
    return {"log_odds_chosen": mean_of(log_odds_ratio), "log_odds_ratio": mean_of(logsigmoid(log_odds_ratio))}


def clipped_tokens(
    ratio: Tensor, advantages: Tensor, *, epsilon: float = 0.2, epsilon_high: float | None = None
) -> tuple[Tensor, Tensor]:
    """Where clipping took the gradient away: (ratio < 1 - epsilon and A < 0), (ratio > 1 + epsilon_high and A > 0)."""
    upper = epsilon if epsilon_high is None else epsilon_high
    return (ratio < 1 - epsilon) & (advantages < 0), (ratio > 1 + upper) & (advantages > 0)


def clip_metrics(
    ratio: Tensor,
    advantages: Tensor,
    segment: Tensor,
    num_completions: int,
    *,
    by_completion: bool = False,
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
) -> Metrics:
    """`clip_ratio/low_mean|high_mean|region_mean`, shares of tokens, and `low_min`, `high_max`, the least and the
    greatest share of a completion.

    ratio, advantages: (N,) of the tokens. With `by_completion` the ratio is that of the whole completion, and the means
    are shares of completions. Completions without a token count nowhere.
    """
    low, high = clipped_tokens(ratio.detach(), advantages, epsilon=epsilon, epsilon_high=epsilon_high)
    present = segment_lengths(segment, num_completions) > 0
    found: Metrics = {}
    shares = {}
    for name, hit in {"low": low, "high": high, "region": low | high}.items():
        shares[name] = segment_mean(wide(hit), segment, num_completions)
        found[f"clip_ratio/{name}_mean"] = mean_of(shares[name], present) if by_completion else mean_of(hit)
    found["clip_ratio/low_min"] = least_of(shares["low"], present)
    found["clip_ratio/high_max"] = greatest_of(shares["high"], present)
    return found


def policy_metrics(
    logps: Tensor,
    old_logps: Tensor | None,
    advantages: Tensor,
    segment: Tensor,
    num_completions: int,
    *,
    ref_logps: Tensor | None = None,
    **options: Any,
) -> Metrics:
    """What the policy loss did, from the same arguments as `policy_loss_flat`.

    `clip_metrics` for clipped losses, at the level of their ratio; `cispo_clip_ratio` (share of tokens whose weight is
    capped, whatever the sign of A); `vespo/phi_seq_mean` (mean gate of a completion, without the sampler correction);
    `kl` (token mean, multiplied by the ratio where the loss does so, nats) with ref_logps.
    """
    told = PolicyOptions(**options)
    logps = logps.detach()
    old_logps = logps if old_logps is None else old_logps.detach()
    ratio = importance_ratio(log_importance_weights(logps, old_logps, segment, num_completions, level=told.level))
    found: Metrics = {}
    if told.loss_type in CLIPPED_LOSS_TYPES:
        clip = {"epsilon": told.epsilon, "epsilon_high": told.upper}
        whole = told.level == "sequence"
        found |= clip_metrics(ratio, advantages, segment, num_completions, by_completion=whole, **clip)
    elif told.loss_type == "cispo":
        found["cispo_clip_ratio"] = mean_of(ratio > told.cap)
    elif told.loss_type == "vespo":
        gate = vespo_gate(logps - old_logps, advantages, segment, num_completions, **told.vespo)
        present = segment_lengths(segment, num_completions) > 0
        found["vespo/phi_seq_mean"] = mean_of(segment_mean(gate, segment, num_completions), present)
    if ref_logps is not None:
        kl = kl_estimate(logps, ref_logps, estimator=told.kl_estimator)
        found["kl"] = mean_of(kl * ratio if told.use_bias_correction_kl else kl)
    return found


def sampler_metrics(
    old_logps: Tensor,
    sampler_logps: Tensor,
    segment: Tensor,
    num_completions: int,
    *,
    mode: str | None = None,
    clip_max: float | None = 3.0,
    clip_min: float | None = None,
) -> Metrics:
    """How far the rollout engine is from the policy at the start of the update.

    `sampling/kl` (k3 estimate of KL(sampler || policy), nats per token),
    `sampling/sampling_logp_difference/mean|max` (|difference|, nats per token) and
    `sampling/importance_sampling_ratio/mean|min|max`: the weights of the correction `mode` (see `sampler_weights`), or
    without one the ratio of each token. Tokens that the engine gave no log-prob (NaN) count in neither; nothing is
    logged where it gave none at all.
    """
    gap = (old_logps - sampler_logps).detach()  # (N,)
    if not gap.numel():
        return {}
    known = ~gap.isnan()
    gap = torch.where(known, gap, torch.zeros_like(gap))
    if mode is None:
        weights = importance_ratio(gap)
    else:
        weights = sampler_weights(
            old_logps, sampler_logps, segment, num_completions, mode=mode, clip_max=clip_max, clip_min=clip_min
        )
    away = gap.abs()
    return {
        "sampling/kl": mean_of(torch.expm1(gap) - gap, known),
        "sampling/sampling_logp_difference/mean": mean_of(away, known),
        "sampling/sampling_logp_difference/max": greatest_of(away, known),
        "sampling/importance_sampling_ratio/mean": mean_of(weights, known),
        "sampling/importance_sampling_ratio/min": least_of(weights, known),
        "sampling/importance_sampling_ratio/max": greatest_of(weights, known),
    }


def ppo_metrics(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    *,
    cliprange: float = 0.2,
    cliprange_value: float | None = 0.2,
) -> Metrics:
    """PPO's update metrics over scored tokens (N,): `policy/approxkl_avg` (half the mean squared change of log-probs),
    `policy/clipfrac_avg` and `val/clipfrac_avg` (share of tokens beyond the clip range where the clipped term is
    larger), `val/ratio` (mean ratio) and `val/ratio_square`, from which the variance follows."""
    ratio = importance_ratio((logps - old_logps).detach())
    low, high = clipped_tokens(ratio, advantages, epsilon=cliprange)
    change = values.detach() - old_values
    bound = math.inf if cliprange_value is None else cliprange_value
    moved = old_values + change.clamp(-bound, bound)
    value_clipped = (change.abs() > bound) & ((moved - returns).square() > (values.detach() - returns).square())
    return {
        "policy/approxkl_avg": mean_of(0.5 * (logps - old_logps).detach().square()),
        "policy/clipfrac_avg": mean_of(low | high),
        "val/clipfrac_avg": mean_of(value_clipped),
        "val/ratio": mean_of(ratio),
        "val/ratio_square": mean_of(ratio.square()),
    }
