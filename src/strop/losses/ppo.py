"""PPO's parts beside the policy loss: rewards of tokens, advantages, whitening, and the critic's loss.

The policy loss itself is `policy_loss` with `loss_type="grpo"`: the clipped surrogate of each token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from strop.device import wide
from strop.losses.names import check_range
from strop.losses.segments import flatten, from_rows, segment_last, to_rows, unflatten


def token_rewards_flat(kl: Tensor, scores: Tensor, segment: Tensor, num_completions: int, *, kl_coef: float) -> Tensor:
    """Reward of each token: -kl_coef KL_t, plus the completion's score on its last scored token.

    Args:
        kl: (N,) KL estimates (`kl_estimate`), nats.
        scores: (S,) scores of the completions, penalties included.
        segment: (N,) completion of each token.
        num_completions: S.
        kl_coef: weight of the KL, >= 0.

    Returns:
        (N,) without gradient.

    Source: arXiv 1909.08593.
    """
    last = segment_last(segment, num_completions)  # (N,)
    return (torch.where(last, scores[segment].to(kl.dtype), 0.0) - kl_coef * kl).detach()


def token_rewards(kl: Tensor, scores: Tensor, mask: Tensor, *, kl_coef: float) -> Tensor:
    """`token_rewards_flat` for KL estimates and a mask of shape (B, T); 0 where the mask is 0."""
    keep, segment = flatten(mask)
    return unflatten(token_rewards_flat(kl[keep], scores, segment, kl.shape[0], kl_coef=kl_coef), keep)


def gae_flat(
    rewards: Tensor, values: Tensor, segment: Tensor, num_completions: int, *, gamma: float = 1.0, lam: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation over the scored tokens of each completion.

    delta_t = rho_t + gamma V_{t+1} - V_t;  A_t = delta_t + gamma lam A_{t+1};  both V and A are 0 after the last
    token;  G_t = A_t + V_t.

    Args:
        rewards: (N,) rewards of the tokens.
        values: (N,) the critic's values of the states that the tokens were drawn from.
        segment: (N,) completion of each token.
        num_completions: S.
        gamma: discount, in [0, 1].
        lam: in [0, 1]; 1 gives discounted return minus value, 0 the one-step error.

    Returns:
        advantages (N,) and returns (N,), without gradient.

    Raises:
        ConfigError: gamma or lam out of range.

    Source: arXiv 1506.02438.
    """
    check_range(gamma, "gamma", 0.0, 1.0, closed_high=True)
    check_range(lam, "lam", 0.0, 1.0, closed_high=True)
    rewards, values = rewards.detach(), values.detach()
    if segment.numel() == 0:
        return rewards.clone(), rewards.clone()
    value_rows = to_rows(values, segment, num_completions)  # (S, L)
    next_values = torch.cat([value_rows[:, 1:], torch.zeros_like(value_rows[:, :1])], dim=1)  # (S, L)
    errors = to_rows(rewards, segment, num_completions) + gamma * next_values - value_rows  # (S, L)
    # Behind a row's last token rewards and values are 0, so errors and advantages are 0 there by themselves.
    advantages = torch.zeros_like(errors)
    running = torch.zeros_like(errors[:, 0])  # (S,)
    for t in range(errors.shape[1] - 1, -1, -1):
        running = errors[:, t] + gamma * lam * running
        advantages[:, t] = running
    flat = from_rows(advantages, segment)
    return flat, flat + values


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float = 1.0, lam: float = 0.95
) -> tuple[Tensor, Tensor]:
    """`gae_flat` for rewards, values and a mask of shape (B, T); 0 where the mask is 0.

    Tokens with mask 0 are left out of the recursion: the token after a gap follows the one before it.
    """
    keep, segment = flatten(mask)
    advantages, returns = gae_flat(rewards[keep], values[keep], segment, rewards.shape[0], gamma=gamma, lam=lam)
    return unflatten(advantages, keep), unflatten(returns, keep)


def moments(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Count, sum and sum of squares of the valid values, (3,), wide; they add up over micro-batches and ranks."""
    valid = wide((values if mask is None else values[mask.bool()]).detach())
    return torch.stack([valid.new_full((), float(valid.numel())), valid.sum(), valid.square().sum()])


def whiten(
    values: Tensor, mask: Tensor | None = None, *, shift_mean: bool = True, statistics: Tensor | None = None
) -> Tensor:
    """Values with mean 0 and unbiased standard deviation 1: (x - mean) / sqrt(var + 1e-8).

    Args:
        values: any shape.
        mask: like values; values with 0 do not count and come back as 0. None: all count.
        shift_mean: False adds the mean back: only the spread changes (PPO's reward whitening).
        statistics: (3,) `moments` of the whole rollout batch, all ranks; None: these values are the whole batch.

    Returns:
        like values. Fewer than two values have no deviation: they are only centred.
    """
    count, total, squares = (moments(values, mask) if statistics is None else wide(statistics)).unbind()
    mean = total / count.clamp(min=1)
    variance = ((squares - count * mean.square()) / (count - 1).clamp(min=1)).clamp(min=0)
    scale = torch.where(count >= 2, torch.rsqrt(variance + 1e-8), torch.ones_like(variance))
    whitened = (wide(values) - mean) * scale + (0.0 if shift_mean else mean)
    whitened = whitened.to(values.dtype)
    return whitened if mask is None else torch.where(mask.bool(), whitened, torch.zeros_like(whitened))


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor | None = None, *, clip: float | None = 0.2
) -> Tensor:
    """Clipped squared error of the critic: max((V - G)^2, (clip(V, V_old - c, V_old + c) - G)^2) / 2.

    Args:
        values: the critic's values, (B, T) with a mask or flat (N,) without.
        old_values: like values, at the start of the update.
        returns: like values, from `gae`.
        mask: like values, 0/1; None: all tokens count.
        clip: c > 0; None: no clipping.

    Returns:
        like values, 0 where the mask is 0; a step's loss is their mean over all valid tokens.

    Source: arXiv 1707.06347; clipping as in 1909.08593's code.
    """
    old_values, returns = old_values.detach(), returns.detach()
    if mask is not None:
        keep = mask.bool()
        return unflatten(value_loss(values[keep], old_values[keep], returns[keep], clip=clip), keep)
    errors = (values - returns).square()
    if clip is not None:
        moved = (values - old_values).clamp(-clip, clip)
        errors = torch.maximum(errors, (old_values + moved - returns).square())
    return 0.5 * errors
