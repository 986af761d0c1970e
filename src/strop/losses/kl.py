"""Estimators of the KL divergence between policy and reference from single samples, token by token or summed."""

from __future__ import annotations

from torch import Tensor

from strop.losses.names import KL_ESTIMATORS, check_name
from strop.losses.numerics import RATIO_LIMIT, expm1_bounded


def kl_estimate(logps: Tensor, ref_logps: Tensor, *, estimator: str = "k3") -> Tensor:
    """Estimate of KL(pi || mu) from samples of pi, with d = log pi - log mu.

    k1 = d; k2 = d^2 / 2; k3 = e^-d - 1 + d >= 0 (straight beyond -d = 20). k1 and k3 have the mean KL(pi || mu), k2
    has it to second order.

    As a *loss* each does something else; its expected gradient under samples of pi is
    k1: 0. k2: that of KL(pi || mu). k3: that of KL(mu || pi), the other direction. (pi / sg(pi)) k3: that of
    KL(pi || mu). Taken token by token, all leave out the effect of a token on the KL of later ones. The tests prove
    each by enumeration.

    Args:
        logps: log-probs under the policy, any shape, nats.
        ref_logps: like logps, under the reference; no gradient flows into them.
        estimator: one of `KL_ESTIMATORS`.

    Returns:
        like logps, nats.

    Raises:
        ConfigError: an unknown estimator.

    Source: Schulman, "Approximating KL divergence"; k3 in a loss: arXiv 2402.03300, Eq. 4.
    """
    check_name(estimator, KL_ESTIMATORS, "kl_estimator")
    gap = logps - ref_logps.detach()
    if estimator == "k1":
        return gap
    if estimator == "k2":
        return 0.5 * gap.square()
    return expm1_bounded(-gap, RATIO_LIMIT) + gap
