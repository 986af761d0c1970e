"""CPO, SimPO and AlphaPO: preference losses without a reference model, one value per pair."""

from __future__ import annotations

import torch
from torch import Tensor

from strop.errors import ConfigError
from strop.losses.names import CPO_AVERAGED_TYPES, CPO_LOSS_TYPES, CPO_OPTIONS, check_name, check_option, check_range
from strop.losses.numerics import expm1_bounded, smoothed_logistic


def check_cpo_options(loss_type: str, *, label_smoothing: float = 0.0, alpha: float = 0.0) -> None:
    """Raise `ConfigError` where `cpo_loss` would: unknown names, options without a meaning, values out of range."""
    check_name(loss_type, CPO_LOSS_TYPES, "loss_type")
    if label_smoothing != 0.0:
        check_option(CPO_OPTIONS, "label_smoothing", loss_type)
        check_range(label_smoothing, "label_smoothing", 0.0, 0.5, closed_high=True)
    if alpha != 0.0:
        check_option(CPO_OPTIONS, "alpha", loss_type)


def cpo_score(mean_logps: Tensor, *, alpha: float = 0.0) -> Tensor:
    """AlphaPO's reward shape: (1 - e^(-alpha l)) / alpha, and l itself at alpha = 0, (B,).

    Source: arXiv 2501.03884.
    """
    return mean_logps if alpha == 0.0 else -expm1_bounded(-alpha * mean_logps) / alpha


def cpo_loss(
    logps_chosen: Tensor,
    logps_rejected: Tensor,
    *,
    beta: float = 0.1,
    loss_type: str = "sigmoid",
    label_smoothing: float = 0.0,
    lengths_chosen: Tensor | None = None,
    lengths_rejected: Tensor | None = None,
    simpo_gamma: float = 0.5,
    alpha: float = 0.0,
) -> Tensor:
    """Preference loss of each pair.

    With l the summed and m the length-averaged log-prob, r(m) = `cpo_score`, eps = `label_smoothing`:

    * `sigmoid`: softplus(-beta (l_w - l_l)).
    * `hinge`: max(0, 1 - beta (l_w - l_l)).
    * `ipo`: (r(m_w) - r(m_l) - 1/(2 beta))^2.
    * `simpo`, `alphapo`: softplus(-(beta (r(m_w) - r(m_l)) - gamma)); gamma = `simpo_gamma` is an absolute margin.
      The two are one formula: SimPO has alpha = 0, AlphaPO not.

    softplus(-x) becomes (1-eps) softplus(-x) + eps softplus(x) with label smoothing.

    Args:
        logps_chosen, logps_rejected: (B,) log-probs summed over the completion, nats.
        beta: > 0.
        loss_type: one of `CPO_LOSS_TYPES`.
        label_smoothing: in [0, 0.5]; see `CPO_OPTIONS` for who takes it.
        lengths_chosen, lengths_rejected: (B,) scored tokens, read by the averaged losses (`CPO_AVERAGED_TYPES`).
            None: the log-probs given to those are averages already.
        simpo_gamma: the margin of simpo and alphapo.
        alpha: AlphaPO's shape; 0 is SimPO.

    Returns:
        (B,); a step's loss is their mean, plus cpo_alpha times the likelihood of the chosen completions.

    Raises:
        ConfigError: an unknown loss type, an option without a meaning for it, a value out of range.

    Differs from the paper: CPO adds the negative log-likelihood as a sequence sum; its code, and ours, as a token
    mean. SimPO and AlphaPO have none: use them with cpo_alpha = 0.

    Source: CPO arXiv 2401.08417, Eqs. 3 and 5; SimPO 2405.14734, Eq. 6; AlphaPO 2501.03884.
    """
    check_cpo_options(loss_type, label_smoothing=label_smoothing, alpha=alpha)
    if (lengths_chosen is None) != (lengths_rejected is None):
        raise ConfigError("Only one of lengths_chosen and lengths_rejected was given; give both or neither.")
    if loss_type in CPO_AVERAGED_TYPES:
        if lengths_chosen is not None and lengths_rejected is not None:
            logps_chosen, logps_rejected = logps_chosen / lengths_chosen, logps_rejected / lengths_rejected
        logps_chosen, logps_rejected = cpo_score(logps_chosen, alpha=alpha), cpo_score(logps_rejected, alpha=alpha)
    gap = logps_chosen - logps_rejected  # (B,)
    if loss_type == "hinge":
        return torch.relu(1 - beta * gap)
    if loss_type == "ipo":
        return (gap - 1 / (2 * beta)).square()
    logit = beta * gap - (simpo_gamma if loss_type in CPO_OPTIONS["simpo_gamma"] else 0.0)
    return smoothed_logistic(logit, label_smoothing)
