"""Metrics of the losses, as sums and counts: they add up over micro-batches and ranks before they are divided.

All take detached numbers and give `Mean`s; none has a gradient. Names are those of TRL's logs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from strop.losses.kl import kl_estimate
from strop.losses.names import CLIPPED_LOSS_TYPES
from strop.losses.numerics import importance_ratio
from strop.losses.policy import log_importance_weights, policy_level, sampler_mode, sampler_weights
from strop.losses.segments import segment_lengths, segment_mean
from strop.records import Mean


def mean_of(values: Tensor) -> Mean:
    """`Mean` over all elements."""
    return Mean(values.detach().double().sum(), float(values.numel()))


def preference_metrics(rewards_chosen: Tensor, rewards_rejected: Tensor) -> dict[str, Mean]:
    """`rewards/chosen|rejected|margins|accuracies` of pairs (B,), (B,); a tie is not accurate."""
    return {
        "rewards/chosen": mean_of(rewards_chosen),
        "rewards/rejected": mean_of(rewards_rejected),
        "rewards/margins": mean_of(rewards_chosen - rewards_rejected),
        "rewards/accuracies": mean_of((rewards_chosen > rewards_rejected).double()),
    }


def class_metrics(values: Tensor, labels: Tensor, *, prefix: str = "rewards") -> dict[str, Mean]:
    """`<prefix>/chosen` over desirable rows and `<prefix>/rejected` over the others, of values (B,), labels (B,)."""
    labels = torch.as_tensor(labels, device=values.device).bool()
    return {f"{prefix}/chosen": mean_of(values[labels]), f"{prefix}/rejected": mean_of(values[~labels])}


def orpo_metrics(log_odds_ratio: Tensor) -> dict[str, Mean]:
    """`log_odds_chosen`, the mean log odds ratio, and `log_odds_ratio`, the mean of its log-sigmoid (<= 0)."""
    return {
        "log_odds_chosen": mean_of(log_odds_ratio),
        "log_odds_ratio": mean_of(torch.nn.functional.logsigmoid(log_odds_ratio)),
    }


def clipped_tokens(
    ratio: Tensor, advantages: Tensor, *, epsilon: float = 0.2, epsilon_high: float | None = None
) -> tuple[Tensor, Tensor]:
    """Where clipping took the gradient away: (ratio < 1 - epsilon and A < 0), (ratio > 1 + epsilon_high and A > 0)."""
    upper = epsilon if epsilon_high is None else epsilon_high
    return (ratio < 1 - epsilon) & (advantages < 0), (ratio > 1 + upper) & (advantages > 0)


def policy_metrics(
    logps: Tensor,
    old_logps: Tensor | None,
    advantages: Tensor,
    segment: Tensor,
    num_completions: int,
    *,
    loss_type: str = "grpo",
    importance_sampling_level: str | None = None,
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    ref_logps: Tensor | None = None,
    kl_estimator: str = "k3",
    use_bias_correction_kl: bool = False,
) -> dict[str, Mean]:
    """What the policy loss did, from the same arguments as `policy_loss_flat`.

    `clip_ratio/low_mean|high_mean|region_mean` for clipped losses (share of tokens; of completions where the ratio
    is that of the completion), `cispo_clip_ratio` (share of tokens whose weight is capped, whatever the sign of A),
    `kl` (token mean, multiplied by the ratio where the loss does so, nats) with ref_logps.
    """
    logps = logps.detach()
    old_logps = logps if old_logps is None else old_logps.detach()
    level = policy_level(loss_type, importance_sampling_level)
    ratio = importance_ratio(log_importance_weights(logps, old_logps, segment, num_completions, level=level))  # (N,)
    found: dict[str, Mean] = {}
    if loss_type in CLIPPED_LOSS_TYPES:
        low, high = clipped_tokens(ratio, advantages, epsilon=epsilon, epsilon_high=epsilon_high)
        for name, hit in {"low_mean": low, "high_mean": high, "region_mean": low | high}.items():
            share = hit.double()
            if level == "sequence":
                share = segment_mean(share, segment, num_completions)[segment_lengths(segment, num_completions) > 0]
            found[f"clip_ratio/{name}"] = mean_of(share)
    elif loss_type == "cispo":
        cap = 1 + (epsilon if epsilon_high is None else epsilon_high)
        found["cispo_clip_ratio"] = mean_of((ratio > cap).double())
    if ref_logps is not None:
        kl = kl_estimate(logps, ref_logps, estimator=kl_estimator)
        found["kl"] = mean_of(kl * ratio if use_bias_correction_kl else kl)
    return found


def sampler_metrics(
    old_logps: Tensor,
    sampler_logps: Tensor,
    segment: Tensor,
    num_completions: int,
    *,
    loss_type: str = "grpo",
    importance_sampling_mode: str | None = None,
    importance_sampling_clip_max: float | None = 3.0,
    importance_sampling_clip_min: float | None = None,
) -> dict[str, Mean]:
    """How far the rollout engine is from the policy: `sampling/sampling_logp_difference/mean` (mean |difference|, nats
    per token) and `sampling/importance_sampling_ratio/mean` (mean weight after truncation or masking)."""
    gap = (old_logps - sampler_logps).detach()
    weights = sampler_weights(
        old_logps,
        sampler_logps,
        segment,
        num_completions,
        mode=sampler_mode(loss_type, importance_sampling_mode),
        clip_max=importance_sampling_clip_max,
        clip_min=importance_sampling_clip_min,
    )
    return {
        "sampling/sampling_logp_difference/mean": mean_of(gap[~gap.isnan()].abs()),
        "sampling/importance_sampling_ratio/mean": mean_of(weights),
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
    cliprange_value: float = 0.2,
) -> dict[str, Mean]:
    """PPO's update metrics over scored tokens (N,): `policy/approxkl_avg` (half the mean squared change of log-probs),
    `policy/clipfrac_avg` and `val/clipfrac_avg` (share of tokens where the clipped term is strictly larger),
    `val/ratio` (mean ratio)."""
    ratio = importance_ratio((logps - old_logps).detach())
    low, high = clipped_tokens(ratio, advantages, epsilon=cliprange)
    moved = old_values + (values.detach() - old_values).clamp(-cliprange_value, cliprange_value)
    value_clipped = (moved - returns).square() > (values.detach() - returns).square()
    return {
        "policy/approxkl_avg": mean_of(0.5 * (logps - old_logps).detach().square()),
        "policy/clipfrac_avg": mean_of((low | high).double()),
        "val/clipfrac_avg": mean_of(value_clipped.double()),
        "val/ratio": mean_of(ratio),
    }
