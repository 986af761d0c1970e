"""KTO: learning from single completions labelled desirable or undesirable, one value per completion."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from strop.losses.names import KTO_LOSS_TYPES, check_name
from strop.losses.numerics import choose, expm1_bounded


def kto_reference_point(total: Tensor | float, count: Tensor | float) -> Tensor:
    """KTO's reference point z = sg(max(0, mean log-ratio of mismatched completions)), ().

    Args:
        total: sum of log pi(y'|x) - log mu(y'|x) over the mismatched rows of the whole step and all ranks, nats.
        count: how many rows that was; 0 gives 0.

    The mean is taken over the step before the clamp, so the value does not depend on how rows were split.

    Source: arXiv 2402.01306.
    """
    total = torch.as_tensor(total).detach()
    count = count.to(total.dtype).clamp(min=1) if isinstance(count, Tensor) else max(count, 1)
    return (total / count).clamp(min=0)


def kto_loss(
    logratios: Tensor,
    labels: Tensor,
    kl: Tensor | float | None,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    loss_type: str = "kto",
) -> Tensor:
    """Loss of each labelled completion.

    With u the log-ratio, z = max(0, kl) without gradient, w the weight of the row's class, and s = +1 for desirable
    rows, -1 for undesirable ones:

    * `kto`: w (1 - sigma(s beta (u - z))).
    * `apo_zero_unpaired`: w (1 - sigma(s beta u)); no reference point.
    * `kto_exp`: w (1 - v(s (u - z))), v(x) = sign(x) (1 - e^(-|x|/beta)); beta divides, larger is softer.
    * `kto_literal`: v(s u), v(x) = 1 - e^(x/beta) for x >= 0 and e^(x/beta) - 1 below, exponents above 30 straight.
      For tests only: its maximum is at x = 0, so it unlearns on one side and diverges on the other. It warns.

    Args:
        logratios: (B,) log pi - log mu summed over the completion, nats.
        labels: (B,) bool or 0/1; true means desirable.
        kl: () log-ratio of mismatched completions (`kto_reference_point`); read by `kto` and `kto_exp`, who need it.
        beta: > 0.
        desirable_weight, undesirable_weight: weights of the classes; keep
            desirable_weight * n_desirable / (undesirable_weight * n_undesirable) within [1, 3/2].
        loss_type: one of `KTO_LOSS_TYPES`.

    Returns:
        (B,). The step's loss is the mean over all rows; for `kto_exp` and `kto_literal` the mean over desirable
        rows plus the mean over undesirable rows (`class_terms`).

    Raises:
        ConfigError: an unknown loss type.

    Source: arXiv 2402.01306; apo_zero_unpaired 2408.06266.
    """
    check_name(loss_type, KTO_LOSS_TYPES, "loss_type")
    labels = torch.as_tensor(labels, device=logratios.device).bool()
    sign = choose(labels, 1.0, -1.0, logratios)
    if loss_type == "kto_literal":
        warnings.warn(
            "kto_literal unlearns desirable rows below 0 and diverges above; use it in tests only.", stacklevel=2
        )
        return _literal_value(sign * logratios, beta)
    weight = choose(labels, desirable_weight, undesirable_weight, logratios)
    if loss_type == "apo_zero_unpaired":
        return weight * torch.sigmoid(-sign * beta * logratios)
    point = kl.detach().to(logratios).clamp(min=0) if isinstance(kl, Tensor) else max(kl or 0.0, 0.0)
    advantage = sign * (logratios - point)  # (B,)
    if loss_type == "kto_exp":
        return weight * (1 - _saturating_value(advantage, beta))
    return weight * torch.sigmoid(-beta * advantage)


def _saturating_value(x: Tensor, beta: float) -> Tensor:
    # A branch for each side, because |x| has no gradient at 0, where v'(0) = 1/beta. A clamp passes the gradient on
    # at its bound, and `where` takes one branch only.
    return torch.where(x >= 0, -torch.expm1(-x.clamp(min=0) / beta), torch.expm1(x.clamp(max=0) / beta))


def _literal_value(x: Tensor, beta: float) -> Tensor:
    return torch.where(x >= 0, -expm1_bounded(x / beta), torch.expm1(x.clamp(max=0) / beta))
