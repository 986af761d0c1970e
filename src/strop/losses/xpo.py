"""XPO: online DPO against samples of the reference, with a bonus for leaving them behind. One value per pair."""

from __future__ import annotations

import torch
from torch import Tensor

from strop.losses.dpo import dpo_loss
from strop.losses.names import XPO_LOSS_TYPES, check_name


def xpo_loss(
    logps: Tensor,
    ref_logps: Tensor,
    opponent_logps: Tensor,
    opponent_ref_logps: Tensor,
    policy_wins: Tensor,
    *,
    beta: float = 0.1,
    alpha: float = 1e-5,
    loss_type: str = "sigmoid",
) -> Tensor:
    """DPO loss of (y, y~) labelled by preference, plus alpha log pi(y~).

    y is a sample of the policy, y~ of the reference. The bonus lowers the likelihood of reference samples whichever
    won (optimism); it is unbounded below, so alpha must be tiny and the KL watched.

    Args:
        logps, ref_logps: (B,) log-probs of y under policy and reference, summed, nats.
        opponent_logps, opponent_ref_logps: (B,) the same of y~.
        policy_wins: (B,) bool, whether y was preferred.
        beta: as in `dpo_loss`.
        alpha: weight of the bonus, >= 0; 0 is online DPO with the reference as opponent.
        loss_type: `sigmoid` or `ipo` (summed log-ratios).

    Returns:
        (B,); a step's loss is their mean.

    Raises:
        ConfigError: an unknown loss type.

    Differs from the paper: Algorithm 1 minimises over all pairs gathered so far, this over those of the step.

    Source: arXiv 2405.21046, Algorithm 1.
    """
    check_name(loss_type, XPO_LOSS_TYPES, "loss_type")
    wins = policy_wins.bool()
    preference = dpo_loss(
        torch.where(wins, logps, opponent_logps),
        torch.where(wins, opponent_logps, logps),
        torch.where(wins, ref_logps, opponent_ref_logps),
        torch.where(wins, opponent_ref_logps, ref_logps),
        beta=beta,
        loss_type=loss_type,
    )
    return preference + xpo_bonus(opponent_logps, alpha=alpha)


def xpo_bonus(opponent_logps: Tensor, *, alpha: float = 1e-5) -> Tensor:
    """alpha log pi(y~), (B,): the part of `xpo_loss` beside the preference loss."""
    return alpha * opponent_logps
