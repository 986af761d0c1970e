"""Policy-gradient losses of the GRPO family, one value per token.

There is one definition, on flat tokens (`policy_loss_flat`); `policy_loss` is the same for (B, T) tensors with a mask.
Neither adds anything up: `reduce.policy_term` does, in the way that belongs to the loss type.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from strop.errors import ConfigError
from strop.losses.kl import kl_estimate
from strop.losses.names import (
    CISPO_CAPS,
    CLIPPED_LOSS_TYPES,
    IMPORTANCE_SAMPLING_LEVELS,
    IMPORTANCE_SAMPLING_MODES,
    KL_ESTIMATORS,
    POLICY_LOSS_TYPES,
    POLICY_OPTIONS,
    check_name,
    check_option,
    check_range,
)
from strop.losses.numerics import RATIO_LIMIT, choose, importance_ratio
from strop.losses.segments import flatten, segment_mean, segment_sum, unflatten


def policy_level(loss_type: str, importance_sampling_level: str | None = None) -> str:
    """The level of the importance ratio, `token` or `sequence`; None means the loss type's own."""
    check_name(loss_type, POLICY_LOSS_TYPES, "loss_type")
    if importance_sampling_level is None:
        return "sequence" if loss_type == "luspo" else "token"
    check_name(importance_sampling_level, IMPORTANCE_SAMPLING_LEVELS, "importance_sampling_level")
    check_option(POLICY_OPTIONS, f"importance_sampling_level={importance_sampling_level}", loss_type)
    return importance_sampling_level


def sampler_mode(loss_type: str, importance_sampling_mode: str | None = None) -> str:
    """The kind of sampler correction (`sampler_weights`); None: `sequence_mask`, or `token_truncate` for vespo.

    VESPO multiplies up the weights of a completion itself, so it takes those of single tokens only.
    """
    if importance_sampling_mode is None:
        return "token_truncate" if loss_type == "vespo" else "sequence_mask"
    check_name(importance_sampling_mode, IMPORTANCE_SAMPLING_MODES, "importance_sampling_mode")
    if importance_sampling_mode.startswith("sequence"):
        check_option(POLICY_OPTIONS, "importance_sampling_mode=sequence", loss_type)
    return importance_sampling_mode


def check_policy_options(
    loss_type: str,
    *,
    importance_sampling_level: str | None = None,
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    delta: float | None = None,
    kl_estimator: str = "k3",
    importance_sampling_mode: str | None = None,
    cispo_cap: str = "relative",
) -> None:
    """Raise `ConfigError` where `policy_loss` would: unknown names, options without a meaning, values out of range."""
    policy_level(loss_type, importance_sampling_level)
    sampler_mode(loss_type, importance_sampling_mode)
    check_name(kl_estimator, KL_ESTIMATORS, "kl_estimator")
    check_name(cispo_cap, CISPO_CAPS, "cispo_cap")
    check_range(epsilon, "epsilon", 0.0, math.inf)
    upper = epsilon if epsilon_high is None else epsilon_high
    check_range(upper, "epsilon_high", 0.0, math.inf)
    if cispo_cap != "relative":
        check_option(POLICY_OPTIONS, "cispo_cap", loss_type)
    if delta is not None:
        check_option(POLICY_OPTIONS, "delta", loss_type)
        if delta <= 1 + upper:
            raise ConfigError(f"delta is {delta}, but it bounds what clipping leaves: set it above {1 + upper}.")


def log_importance_weights(
    logps: Tensor, old_logps: Tensor, segment: Tensor, num_completions: int, *, level: str = "token"
) -> Tensor:
    """log of the importance ratio that each token is weighted with, (N,).

    `token`: log pi - log pi_old. `sequence`: its mean over the completion, the same for all its tokens (GSPO).
    """
    log_ratio = logps - old_logps
    return log_ratio if level == "token" else segment_mean(log_ratio, segment, num_completions)[segment]


def sequence_ratio(logps: Tensor, old_logps: Tensor, segment: Tensor, num_completions: int) -> Tensor:
    """GSPO's ratio of each completion: s = exp(mean_t (log pi - log pi_old)), (S,)."""
    return importance_ratio(segment_mean(logps - old_logps, segment, num_completions))


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
    gap = (old_logps - sampler_logps).detach()  # (N,)
    gap = torch.where(gap.isnan(), torch.zeros_like(gap), gap)
    if mode.startswith("sequence"):
        gap = segment_sum(gap, segment, num_completions)[segment]
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


def clipped_surrogate(
    ratio: Tensor, advantages: Tensor, *, epsilon: float, epsilon_high: float, delta: float | None = None
) -> Tensor:
    """PPO's loss -min(r A, clip(r, 1 - epsilon, 1 + epsilon_high) A); with `delta`, r A becomes min(r, delta) A.

    Any shape. `delta` only acts where A < 0, and is the dual clip of arXiv 1912.09729 and 2505.07291.
    """
    clipped = ratio.clamp(1 - epsilon, 1 + epsilon_high)
    unclipped = ratio if delta is None else ratio.clamp(max=delta)
    return -torch.minimum(unclipped * advantages, clipped * advantages)


def cispo_loss(ratio: Tensor, logps: Tensor, advantages: Tensor, *, cap: float) -> Tensor:
    """CISPO's -sg(min(r, cap)) A log pi: every token keeps a gradient. Source: arXiv 2506.13585, Eqs. 4 and 5."""
    return -ratio.detach().clamp(max=cap) * advantages * logps


def sapo_loss(
    ratio: Tensor, advantages: Tensor, *, temperature_pos: float = 1.0, temperature_neg: float = 1.05
) -> Tensor:
    """SAPO's soft gate -(4/tau) sigma(tau (r - 1)) A, tau by the sign of A. Source: arXiv 2511.20347."""
    tau = choose(advantages > 0, temperature_pos, temperature_neg, ratio)
    return -4 / tau * torch.sigmoid(tau * (ratio - 1)) * advantages


def vespo_gate(
    log_ratio: Tensor,
    advantages: Tensor,
    segment: Tensor,
    num_completions: int,
    *,
    weights: Tensor | None = None,
    k_pos: float = 2.0,
    lambda_pos: float = 3.0,
    k_neg: float = 3.0,
    lambda_neg: float = 2.0,
) -> Tensor:
    """VESPO's gate phi(w) = w^k e^(lambda (1 - w)), w the ratio of the whole completion, (N,) without gradient.

    phi(1) = 1; k and lambda by the sign of A. `weights` (N,) of the sampler correction are part of w. log w is kept
    within [log 1e-8, 20].

    Source: arXiv 2602.10693.
    """
    steps = log_ratio.detach().clamp(-RATIO_LIMIT, RATIO_LIMIT)
    floor = math.log(1e-8)
    if weights is not None:
        steps = steps + weights.clamp(min=1e-8).log()
    log_w = segment_sum(steps, segment, num_completions).clamp(floor, RATIO_LIMIT)[segment]  # (N,)
    k = choose(advantages >= 0, k_pos, k_neg, log_w)
    rate = choose(advantages >= 0, lambda_pos, lambda_neg, log_w)
    return torch.exp(k * log_w - rate * torch.expm1(log_w))


def policy_loss_flat(
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
    delta: float | None = None,
    ref_logps: Tensor | None = None,
    beta: float = 0.0,
    kl_estimator: str = "k3",
    use_bias_correction_kl: bool = False,
    sampler_logps: Tensor | None = None,
    importance_sampling_mode: str | None = None,
    importance_sampling_clip_max: float | None = 3.0,
    importance_sampling_clip_min: float | None = None,
    keep: Tensor | None = None,
    cispo_cap: str = "relative",
    sapo_temperature_pos: float = 1.0,
    sapo_temperature_neg: float = 1.05,
    vespo_k_pos: float = 2.0,
    vespo_lambda_pos: float = 3.0,
    vespo_k_neg: float = 3.0,
    vespo_lambda_neg: float = 2.0,
) -> Tensor:
    """Loss of each token: the policy term, weighted by `keep` and the sampler correction, plus beta KL.

    With r the importance ratio of the token, or of its completion (`log_importance_weights`), A the advantage:

    | loss_type | policy term | source |
    |---|---|---|
    | grpo, dapo, dr_grpo, bnpo, luspo | `clipped_surrogate` | 2402.03300, 2503.14476, 2503.20783, -, 2602.05261 |
    | cispo | `cispo_loss`, cap 1 + epsilon_high | 2506.13585 |
    | sapo | `sapo_loss` | 2511.20347 |
    | vespo | -`vespo_gate` A log pi | 2602.10693 |

    GSPO (2507.18071) is grpo with `importance_sampling_level="sequence"`; LUSPO is GSPO added up over tokens.

    Args:
        logps: (N,) log-probs of the scored tokens under the policy, at the sampling temperature, nats.
        old_logps: (N,) under the policy at the start of the update; None: the policy has not moved (ratio 1).
        advantages: (N,); for one advantage per completion give `advantages[segment]`.
        segment: (N,) completion, 0..S-1, of each token.
        num_completions: S.
        loss_type: one of `POLICY_LOSS_TYPES`.
        importance_sampling_level: `token` or `sequence`; None: sequence for luspo, token for the others.
        epsilon, epsilon_high: clip range [1 - epsilon, 1 + epsilon_high]; epsilon_high None: epsilon.
        delta: upper bound of the ratio where A < 0, above 1 + epsilon_high; None: none.
        ref_logps: (N,) under the reference; needed where beta is not 0.
        beta: weight of the KL term.
        kl_estimator: see `kl_estimate`.
        use_bias_correction_kl: multiply the KL term by r, with gradient, so that k3 follows KL(pi || mu).
        sampler_logps: (N,) log-probs that the rollout engine reported; None: no correction (`sampler_weights`).
        importance_sampling_mode, importance_sampling_clip_max, importance_sampling_clip_min: see `sampler_weights`.
        keep: (N,) 0/1 or weights on the policy term (`top_entropy_mask`, `off_policy_mask`); the KL term stays.
        cispo_cap: `relative` caps r at 1 + epsilon_high; `absolute` at epsilon_high, which is TRL's reading.
        sapo_temperature_pos, sapo_temperature_neg, vespo_*: see `sapo_loss`, `vespo_gate`.

    Returns:
        (N,), unreduced.

    Raises:
        ConfigError: an unknown name, an option without a meaning for the loss type, a value out of range.
    """
    check_policy_options(
        loss_type,
        importance_sampling_level=importance_sampling_level,
        epsilon=epsilon,
        epsilon_high=epsilon_high,
        delta=delta,
        kl_estimator=kl_estimator,
        importance_sampling_mode=importance_sampling_mode,
        cispo_cap=cispo_cap,
    )
    level = policy_level(loss_type, importance_sampling_level)
    upper = epsilon if epsilon_high is None else epsilon_high
    old_logps = logps.detach() if old_logps is None else old_logps.detach()
    advantages = advantages.detach()
    weights = None
    if sampler_logps is not None:
        mode = sampler_mode(loss_type, importance_sampling_mode)
        bounds = {"clip_max": importance_sampling_clip_max, "clip_min": importance_sampling_clip_min}
        weights = sampler_weights(old_logps, sampler_logps, segment, num_completions, mode=mode, **bounds)
    ratio = importance_ratio(log_importance_weights(logps, old_logps, segment, num_completions, level=level))  # (N,)
    if loss_type in CLIPPED_LOSS_TYPES:
        loss = clipped_surrogate(ratio, advantages, epsilon=epsilon, epsilon_high=upper, delta=delta)
    elif loss_type == "cispo":
        loss = cispo_loss(ratio, logps, advantages, cap=1 + upper if cispo_cap == "relative" else upper)
    elif loss_type == "sapo":
        loss = sapo_loss(ratio, advantages, temperature_pos=sapo_temperature_pos, temperature_neg=sapo_temperature_neg)
    else:
        shape = {"k_pos": vespo_k_pos, "lambda_pos": vespo_lambda_pos, "k_neg": vespo_k_neg}
        shape["lambda_neg"] = vespo_lambda_neg
        gate = vespo_gate(logps - old_logps, advantages, segment, num_completions, weights=weights, **shape)
        loss, weights = -gate * advantages * logps, None
    if keep is not None:
        loss = loss * keep.to(loss.dtype)
    if weights is not None:
        loss = loss * weights
    if beta == 0.0:
        return loss
    if ref_logps is None:
        raise ConfigError(f"beta is {beta}, but there are no ref_logps to take the KL to; give them, or set beta to 0.")
    kl = kl_estimate(logps, ref_logps, estimator=kl_estimator)
    return loss + beta * (kl * ratio if use_bias_correction_kl else kl)


def policy_loss(
    logps: Tensor,
    old_logps: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    *,
    ref_logps: Tensor | None = None,
    sampler_logps: Tensor | None = None,
    keep: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """`policy_loss_flat` for rows of tokens with a mask.

    Args:
        logps, old_logps, ref_logps, sampler_logps, keep: (B, T) each, or None where that is allowed.
        advantages: (B,) or (B, T).
        mask: (B, T) 0/1; tokens with 0 are not looked at, whatever they hold.
        options: the other keyword arguments of `policy_loss_flat`.

    Returns:
        (B, T), unreduced, 0 where the mask is 0.
    """
    chosen, segment = flatten(mask)
    advantages = advantages[:, None].expand_as(logps) if advantages.dim() == 1 else advantages

    def flat(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[chosen]

    loss = policy_loss_flat(
        logps[chosen],
        flat(old_logps),
        advantages[chosen],
        segment,
        logps.shape[0],
        ref_logps=flat(ref_logps),
        sampler_logps=flat(sampler_logps),
        keep=flat(keep),
        **options,
    )
    return unflatten(loss, chosen)
