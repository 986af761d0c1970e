"""ORPO: the odds-ratio term that is added to the likelihood of the chosen completion. No reference model."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import softplus

from strop.losses.numerics import log_odds


def log_odds_ratio(mean_logps_chosen: Tensor, mean_logps_rejected: Tensor) -> Tensor:
    """log of the ratio of odds P_w/(1-P_w) over P_l/(1-P_l), (B,); P = e^(mean log-prob)."""
    return log_odds(mean_logps_chosen) - log_odds(mean_logps_rejected)


def orpo_loss(mean_logps_chosen: Tensor, mean_logps_rejected: Tensor, *, beta: float = 0.1) -> Tensor:
    """Odds-ratio term of each pair: beta softplus(-logOR), logOR = log odds(P_w) - log odds(P_l).

    P is the geometric mean of the token probabilities, odds = P / (1 - P). ORPO's loss is this plus the negative
    log-likelihood of the chosen completion (`nll_loss`). Where P reaches 1 the log-odds are capped (`log_odds`), so
    value and gradient stay finite; up to there the gradient grows as 1 / (1 - P).

    Args:
        mean_logps_chosen, mean_logps_rejected: (B,) log-probs averaged over the completion's tokens, nats, <= 0.
            Summed log-probs give the form without length normalisation, which is nearly a plain log-ratio.
        beta: weight of the term, called lambda in the paper.

    Returns:
        (B,); a step's loss takes their mean.

    Source: arXiv 2403.07691, Eqs. 4, 6 and 7.
    """
    return beta * softplus(-log_odds_ratio(mean_logps_chosen, mean_logps_rejected))
