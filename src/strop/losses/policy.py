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
from strop.losses.numerics import RATIO_LIMIT, choose, importance_ratio
from strop.losses.policy_options import PolicyOptions
from strop.losses.sampler_correction import sampler_weights
from strop.losses.segments import flatten, segment_mean, segment_sum, unflatten


def log_importance_weights(
    logps: Tensor, old_logps: Tensor, segment: Tensor, num_completions: int, *, level: str = "token"
) -> Tensor:
    """log of the importance ratio that each token is weighted with, (N,).

    `token`: log pi - log pi_old. `sequence`: its mean over the completion, the same for all its tokens (GSPO).
    """
    log_ratio = logps - old_logps
    return log_ratio if level == "token" else segment_mean(log_ratio, segment, num_completions)[segment]


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
    ref_logps: Tensor | None = None,
    sampler_logps: Tensor | None = None,
    keep: Tensor | None = None,
    **options: Any,
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
        ref_logps: (N,) under the reference; needed where beta is not 0.
        sampler_logps: (N,) log-probs that the rollout engine reported; None: no correction (`sampler_weights`).
        keep: (N,) 0/1 or weights on the policy term (`top_entropy_mask`, `off_policy_mask`); the KL term stays.
        options: the fields of `PolicyOptions`.

    Returns:
        (N,), unreduced.

    Raises:
        ConfigError: an unknown name, an option without a meaning for the loss type, a value out of range.
    """
    told = PolicyOptions(**options)
    old_logps = logps.detach() if old_logps is None else old_logps.detach()
    weights = None
    if sampler_logps is not None:
        weights = sampler_weights(old_logps, sampler_logps, segment, num_completions, **told.correction)
    ratio = importance_ratio(log_importance_weights(logps, old_logps, segment, num_completions, level=told.level))
    advantages = advantages.detach()
    if told.loss_type == "vespo":  # the weights of the sampler correction are part of the gate
        gate = vespo_gate(logps - old_logps, advantages, segment, num_completions, weights=weights, **told.vespo)
        loss = -gate * advantages * logps
    else:
        loss = _ratio_term(ratio, logps, advantages, told)
        loss = loss if weights is None else loss * weights
    if keep is not None:
        loss = loss * keep.to(loss.dtype)
    if told.beta == 0.0:
        return loss
    if ref_logps is None:
        raise ConfigError(
            f"beta is {told.beta}, but there are no ref_logps to take the KL to; give them, or set beta to 0."
        )
    kl = kl_estimate(logps, ref_logps, estimator=told.kl_estimator)
    return loss + told.beta * (kl * ratio if told.use_bias_correction_kl else kl)


def _ratio_term(ratio: Tensor, logps: Tensor, advantages: Tensor, told: PolicyOptions) -> Tensor:
    """The policy term of the losses that are functions of the ratio, (N,)."""
    if told.loss_type == "cispo":
        return cispo_loss(ratio, logps, advantages, cap=told.cap)
    if told.loss_type == "sapo":
        sharpness = {"temperature_pos": told.sapo_temperature_pos, "temperature_neg": told.sapo_temperature_neg}
        return sapo_loss(ratio, advantages, **sharpness)
    return clipped_surrogate(ratio, advantages, epsilon=told.epsilon, epsilon_high=told.upper, delta=told.delta)


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
