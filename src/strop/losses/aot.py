"""AOT over a step that does not fit one forward pass: sort the whole step first, then compute losses in parts.

AOT compares the i-th smallest of one set with the i-th smallest of another, over the whole step. `aot_partners` finds
out, without gradient, which number each pair is compared with; `aot_loss` then needs one micro-batch at a time, and
the losses and gradients of all of them add up to those of `dpo_loss` on the whole step.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from strop.losses.names import DPO_BATCH_LOSS_TYPES, check_name, check_range
from strop.losses.numerics import smoothed_logistic


class AOTPartners(NamedTuple):
    """What each pair's numbers are compared with, (B,) each, without gradient."""

    chosen: Tensor  # aot: the reference's gap of the same rank; aot_unpaired: the rejected log-ratio of the same rank
    rejected: Tensor  # aot: not used (zeros); aot_unpaired: the chosen log-ratio of the same rank


def aot_partners(
    logps_chosen: Tensor,
    logps_rejected: Tensor,
    ref_logps_chosen: Tensor,
    ref_logps_rejected: Tensor,
    *,
    loss_type: str = "aot",
) -> AOTPartners:
    """Partners of all pairs of a step.

    Args:
        logps_chosen, logps_rejected, ref_logps_chosen, ref_logps_rejected: (B,) summed log-probs of every pair of the
            step, all ranks, nats.
        loss_type: `aot` or `aot_unpaired`.

    Returns:
        partners (B,), in the order of the pairs: slice them like the micro-batches.

    Raises:
        ConfigError: another loss type.
    """
    check_name(loss_type, DPO_BATCH_LOSS_TYPES, "loss_type")
    with torch.no_grad():
        if loss_type == "aot":
            gap, ref_gap = logps_chosen - logps_rejected, ref_logps_chosen - ref_logps_rejected
            return AOTPartners(_same_rank(gap, ref_gap), torch.zeros_like(gap))
        u_w, u_l = logps_chosen - ref_logps_chosen, logps_rejected - ref_logps_rejected
        return AOTPartners(_same_rank(u_w, u_l), _same_rank(u_l, u_w))


def aot_loss(
    logps_chosen: Tensor,
    logps_rejected: Tensor,
    ref_logps_chosen: Tensor,
    ref_logps_rejected: Tensor,
    partners: AOTPartners,
    *,
    beta: float = 0.1,
    loss_type: str = "aot",
    label_smoothing: float = 0.0,
) -> Tensor:
    """AOT loss of the pairs of a micro-batch, with f(x) = -(1-eps) log sigma(x) - eps log sigma(-x).

    `aot`: f(beta (gap - partner)). `aot_unpaired`: f(beta (u_w - partner)) + f(beta (partner' - u_l)), each a full
    gradient and half a value, because every match is seen from both of its sides.

    Args:
        logps_chosen, logps_rejected, ref_logps_chosen, ref_logps_rejected: (b,) of the micro-batch, nats.
        partners: (b,) of the same pairs (`aot_partners` over the step).
        beta, label_smoothing: as in `dpo_loss`.
        loss_type: `aot` or `aot_unpaired`.

    Returns:
        (b,), in the order of the pairs; a step's loss is their mean.

    Raises:
        ConfigError: another loss type, label_smoothing out of range.

    Source: arXiv 2406.05882.
    """
    check_name(loss_type, DPO_BATCH_LOSS_TYPES, "loss_type")
    check_range(label_smoothing, "label_smoothing", 0.0, 0.5, closed_high=True)
    ref_logps_chosen, ref_logps_rejected = ref_logps_chosen.detach(), ref_logps_rejected.detach()

    def f(x: Tensor) -> Tensor:
        return smoothed_logistic(beta * x, label_smoothing)

    if loss_type == "aot":
        return f(logps_chosen - logps_rejected - partners.chosen)
    both = f(logps_chosen - ref_logps_chosen - partners.chosen) + f(
        partners.rejected - (logps_rejected - ref_logps_rejected)
    )
    return both - 0.5 * both.detach()


def _same_rank(values: Tensor, others: Tensor) -> Tensor:
    """For each of `values` (B,) the one of `others` (B,) that has the same rank."""
    return torch.empty_like(values).scatter(0, values.argsort(), others.sort().values)
