"""RLOO: the policy gradient of whole completions, one value per completion. Its advantages are `leave_one_out`."""

from __future__ import annotations

from torch import Tensor

from strop.losses.names import check_range
from strop.losses.numerics import importance_ratio
from strop.losses.policy import clipped_surrogate


def reinforce_loss(logps: Tensor, advantages: Tensor) -> Tensor:
    """REINFORCE on whole completions: -sg(A) log pi(y|x).

    Args:
        logps: (S,) log-probs summed over the completion, nats.
        advantages: (S,).

    Returns:
        (S,); a step's loss is their mean. Its value says nothing about progress.

    Source: arXiv 2402.14740.
    """
    return -advantages.detach() * logps


def rloo_loss(
    logps: Tensor,
    old_logps: Tensor | None,
    advantages: Tensor,
    *,
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Clipped policy gradient of whole completions: -w min(r A, clip(r, 1 - epsilon, 1 + epsilon_high) A).

    r = pi(y|x) / pi_old(y|x), the product over the completion's tokens; for long completions a narrow range.

    Args:
        logps, old_logps: (S,) log-probs summed over the completion, nats; old_logps None: the policy has not moved.
        advantages: (S,), from `leave_one_out`.
        epsilon, epsilon_high: clip range; epsilon_high None: epsilon.
        weights: (S,) w = pi_old(y|x) / pi_sampler(y|x) within bounds (`completion_weights`); None: 1.

    Returns:
        (S,); a step's loss is their mean over all completions.

    Raises:
        ConfigError: a negative epsilon.

    Differs from the paper: it has no clipping (`reinforce_loss`). Where the policy has not moved the gradients agree.

    Source: arXiv 2402.14740.
    """
    upper = epsilon if epsilon_high is None else epsilon_high
    check_range(epsilon, "epsilon", 0.0, float("inf"))
    check_range(upper, "epsilon_high", 0.0, float("inf"))
    old_logps = logps.detach() if old_logps is None else old_logps.detach()
    ratio = importance_ratio(logps - old_logps)
    loss = clipped_surrogate(ratio, advantages.detach(), epsilon=epsilon, epsilon_high=upper)
    return loss if weights is None else loss * weights.detach()
