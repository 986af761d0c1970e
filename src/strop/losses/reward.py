"""The Bradley-Terry loss of reward models, one value per pair."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import softplus


def reward_loss(
    scores_chosen: Tensor,
    scores_rejected: Tensor,
    *,
    margin: Tensor | None = None,
    center_coefficient: float | None = None,
) -> Tensor:
    """Negative log-likelihood that the chosen completion beats the rejected one.

    softplus(-(r_w - r_l - m)) + c (r_w + r_l)^2

    Args:
        scores_chosen, scores_rejected: (B,) scalar scores r.
        margin: (B,) m, by how much the chosen one should win; None: 0.
        center_coefficient: c, keeps scores around 0 (0.01 is advised); None: 0.

    Returns:
        (B,); a step's loss is their mean.

    Source: arXiv 2203.02155, Eq. 1; margin 2307.09288, Eq. 2; centring 2312.09244, Eq. 2.
    """
    gap = scores_chosen - scores_rejected
    loss = softplus(-(gap if margin is None else gap - margin))
    if center_coefficient is None:
        return loss
    return loss + center_coefficient * (scores_chosen + scores_rejected).square()
