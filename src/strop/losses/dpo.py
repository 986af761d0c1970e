"""The DPO family: losses of chosen and rejected completions against a reference, one value per pair.

Notation: u = log pi(y|x) - log mu(y|x), summed over the completion; u_w of the chosen, u_l of the rejected one;
a = beta (u_w - u_l). Reference log-probs carry no gradient. Which option belongs to which loss is the table
`names.DPO_OPTIONS`; any other combination is a `ConfigError`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from strop.errors import ConfigError
from strop.losses.names import (
    DPO_LOSS_TYPES,
    DPO_OPTIONS,
    F_DIVERGENCE_ALIASES,
    F_DIVERGENCES,
    check_name,
    check_option,
    check_range,
)
from strop.losses.numerics import exp_bounded, expm1_bounded, logsigmoid, smoothed_logistic


def f_divergence_score(logratios: Tensor, *, f_divergence: str = "reverse_kl", f_alpha: float = 0.5) -> Tensor:
    """What stands in for the log-ratio u under another divergence than the reverse KL: s(u) = f'(e^u) + constant.

    reverse_kl u; forward_kl 1 - e^-u; js_divergence log 2 + log sigma(u); alpha_divergence (e^((c-1)u) - 1) / (c - 1)
    with c = `f_alpha`, which is u at c = 1 and 1 - e^-u at c = 0.

    Args:
        logratios: (B,) summed log-ratios, nats. Exponents above 30 go on as straight lines (`exp_bounded`).
        f_divergence: one of `F_DIVERGENCES` (`js` and `alpha` for short).
        f_alpha: c, used by `alpha_divergence` only.

    Returns:
        (B,).

    Differs from the paper: it writes the alpha-divergence with alpha = 1 - c, score (1 - e^(-alpha u)) / alpha, so
    that its alpha = 0 is the reverse KL. c is the parameter of TRL 1.16's `f_alpha_divergence_coef`; the two agree
    at 0.5 only.

    Source: arXiv 2309.16240.
    """
    name = F_DIVERGENCE_ALIASES.get(f_divergence, f_divergence)
    check_name(name, F_DIVERGENCES, "f_divergence")
    if name == "reverse_kl":
        return logratios
    if name == "forward_kl":
        return -expm1_bounded(-logratios)
    if name == "js_divergence":
        return math.log(2.0) + logsigmoid(logratios)
    power = f_alpha - 1.0
    return logratios if power == 0.0 else expm1_bounded(power * logratios) / power


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Everything that a pair loss may use; all tensors (B,)."""

    u_w: Tensor  # log-ratio of the chosen completion
    u_l: Tensor  # log-ratio of the rejected completion
    logit: Tensor  # beta (s(u_w) - s(u_l)), lengths divided out where the loss is length-normalised
    policy_gap: Tensor  # log pi(y_w) - log pi(y_l)
    ref_gap: Tensor  # log mu(y_w) - log mu(y_l)
    beta: float
    eps: float  # label_smoothing
    tau: float  # discopop_tau


def _exo(p: _Pairs) -> Tensor:
    log_q, log_not_q = logsigmoid(p.logit), logsigmoid(-p.logit)
    return log_q.exp() * (log_q - math.log1p(-p.eps)) + log_not_q.exp() * (log_not_q - math.log(p.eps))


def _nca(p: _Pairs) -> Tensor:
    reward_w, reward_l = p.beta * p.u_w, p.beta * p.u_l
    return softplus(-reward_w) + 0.5 * softplus(reward_w) + 0.5 * softplus(reward_l)


def _discopop(p: _Pairs) -> Tensor:
    gate = p.logit / p.tau
    return softplus(-p.logit) * torch.sigmoid(-gate) + exp_bounded(-p.logit) * torch.sigmoid(gate)


_LOSSES: dict[str, Callable[[_Pairs], Tensor]] = {
    "sigmoid": lambda p: smoothed_logistic(p.logit, p.eps),
    "sigmoid_norm": lambda p: smoothed_logistic(p.logit, p.eps),
    "robust": lambda p: ((1 - p.eps) * softplus(-p.logit) - p.eps * softplus(p.logit)) / (1 - 2 * p.eps),
    "hinge": lambda p: torch.relu(1 - p.logit),
    "ipo": lambda p: (p.logit / p.beta - 1 / (2 * p.beta)).square(),
    "exo_pair": _exo,
    "nca_pair": _nca,
    "bco_pair": lambda p: softplus(-p.beta * p.u_w) + softplus(p.beta * p.u_l),
    "sppo_hard": lambda p: (p.u_w - 1 / (2 * p.beta)).square() + (p.u_l + 1 / (2 * p.beta)).square(),
    "aot": lambda p: smoothed_logistic(p.beta * (p.policy_gap.sort().values - p.ref_gap.sort().values), p.eps),
    "aot_unpaired": lambda p: smoothed_logistic(p.beta * (p.u_w.sort().values - p.u_l.sort().values), p.eps),
    "apo_zero": lambda p: torch.sigmoid(-p.beta * p.u_w) + torch.sigmoid(p.beta * p.u_l),
    "apo_down": lambda p: torch.sigmoid(p.beta * p.u_w) + torch.sigmoid(-p.logit),
    "discopop": _discopop,
    "exponential": lambda p: exp_bounded(-p.logit),
}


def check_dpo_options(loss_type: str, *, label_smoothing: float = 0.0, f_divergence: str = "reverse_kl") -> None:
    """Raise `ConfigError` where `dpo_loss` would: unknown names, options without a meaning, values out of range."""
    check_name(loss_type, DPO_LOSS_TYPES, "loss_type")
    if label_smoothing != 0.0:
        check_option(DPO_OPTIONS, "label_smoothing", loss_type)
        check_range(label_smoothing, "label_smoothing", 0.0, 0.5, closed_high=loss_type != "robust")
    elif loss_type == "exo_pair":
        raise ConfigError(
            "label_smoothing is 0, but loss_type 'exo_pair' takes its logarithm; set it above 0 (the paper: 1e-3)."
        )
    f_divergence = F_DIVERGENCE_ALIASES.get(f_divergence, f_divergence)
    check_name(f_divergence, F_DIVERGENCES, "f_divergence")
    if f_divergence != "reverse_kl":
        check_option(DPO_OPTIONS, "f_divergence", loss_type)


def dpo_loss(
    logps_chosen: Tensor,
    logps_rejected: Tensor,
    ref_logps_chosen: Tensor,
    ref_logps_rejected: Tensor,
    *,
    beta: float = 0.1,
    loss_type: str = "sigmoid",
    label_smoothing: float = 0.0,
    lengths_chosen: Tensor | None = None,
    lengths_rejected: Tensor | None = None,
    f_divergence: str = "reverse_kl",
    f_alpha: float = 0.5,
    discopop_tau: float = 0.05,
) -> Tensor:
    """Preference loss of each pair.

    With s(u) = u (`f_divergence_score` for others), a = beta (s(u_w) - s(u_l)), eps = `label_smoothing`,
    q = sigma(a), softplus(x) = log(1 + e^x):

    | loss_type | value | source |
    |---|---|---|
    | sigmoid | (1-eps) softplus(-a) + eps softplus(a); eps > 0 is cDPO | 2305.18290 Eq. 7 |
    | robust | [(1-eps) softplus(-a) - eps softplus(a)] / (1 - 2 eps), eps < 1/2; unbounded below | 2403.00409 |
    | hinge | max(0, 1 - a) | 2309.06657 |
    | ipo | (a/beta - 1/(2 beta))^2, with s(u)/length where lengths are given, sums where not | 2310.12036 Eq. 17 |
    | sigmoid_norm | sigmoid with s(u)/length | 2411.15124 |
    | exo_pair | q log(q/(1-eps)) + (1-q) log((1-q)/eps), eps > 0 | 2402.00856 Eq. 16 |
    | nca_pair | softplus(-beta u_w) + softplus(beta u_w)/2 + softplus(beta u_l)/2 | 2402.05369 |
    | bco_pair | softplus(-beta u_w) + softplus(beta u_l) | 2404.04656 with delta = 0 |
    | sppo_hard | (u_w - 1/(2 beta))^2 + (u_l + 1/(2 beta))^2 | 2405.00675 Eq. 4.7 |
    | aot | sigmoid of beta (sort(log pi_w - log pi_l) - sort(log mu_w - log mu_l)) | 2406.05882 |
    | aot_unpaired | sigmoid of beta (sort(u_w) - sort(u_l)) | 2406.05882 |
    | apo_zero | 1 - sigma(beta u_w) + sigma(beta u_l), in (0, 2) | 2408.06266 Eq. 7 |
    | apo_down | sigma(beta u_w) + 1 - q; lowers the chosen one too | 2408.06266 Eq. 8 |
    | discopop | softplus(-a) (1-g) + e^-a g, g = sigma(a/`discopop_tau`); not convex | 2406.08414 Eq. 5 |
    | exponential | e^-a | 2402.05749 |

    Exponentials of exponents above 30 go on as straight lines (`exp_bounded`).

    Args:
        logps_chosen, logps_rejected: (B,) log-probs of the completions under the policy, summed over tokens, nats.
        ref_logps_chosen, ref_logps_rejected: (B,) the same under the reference; no gradient flows into them.
        beta: strength of the pull to the reference, > 0.
        loss_type: one of `DPO_LOSS_TYPES`.
        label_smoothing: eps in [0, 0.5], share of labels taken to be flipped; see `DPO_OPTIONS` for who takes it.
        lengths_chosen, lengths_rejected: (B,) scored tokens; read by ipo and sigmoid_norm.
        f_divergence, f_alpha: see `f_divergence_score`.
        discopop_tau: temperature of DiscoPOP's gate, > 0.

    Returns:
        (B,) one loss per pair; a step's loss is their mean. `aot` and `aot_unpaired` return them in sorted order, and
        need all pairs of the step in one call (`aot_loss` does not).

    Raises:
        ConfigError: an unknown name, an option without a meaning for the loss type, a value out of range.

    Differs from the paper: ipo divides log-ratios by lengths where lengths are given (the authors' later advice; the
    paper prints sums); sppo_hard is the paper's sum, the authors' code takes half of it; bco_pair has no running
    delta (see `bco_loss`); exo_pair's official code rounds log(1-eps) to 0.
    """
    check_dpo_options(loss_type, label_smoothing=label_smoothing, f_divergence=f_divergence)
    if (lengths_chosen is None) != (lengths_rejected is None):
        raise ConfigError("Only one of lengths_chosen and lengths_rejected was given; give both or neither.")
    if loss_type == "sigmoid_norm" and lengths_chosen is None:
        raise ConfigError(
            "loss_type 'sigmoid_norm' divides log-ratios by lengths; give lengths_chosen and lengths_rejected."
        )
    ref_logps_chosen, ref_logps_rejected = ref_logps_chosen.detach(), ref_logps_rejected.detach()
    u_w, u_l = logps_chosen - ref_logps_chosen, logps_rejected - ref_logps_rejected
    score_w = f_divergence_score(u_w, f_divergence=f_divergence, f_alpha=f_alpha)
    score_l = f_divergence_score(u_l, f_divergence=f_divergence, f_alpha=f_alpha)
    if loss_type in DPO_OPTIONS["length_norm"] and lengths_chosen is not None and lengths_rejected is not None:
        score_w, score_l = score_w / lengths_chosen, score_l / lengths_rejected
    pairs = _Pairs(
        u_w=u_w,
        u_l=u_l,
        logit=beta * (score_w - score_l),
        policy_gap=logps_chosen - logps_rejected,
        ref_gap=ref_logps_chosen - ref_logps_rejected,
        beta=beta,
        eps=label_smoothing,
        tau=discopop_tau,
    )
    return _LOSSES[loss_type](pairs)  # (B,)
