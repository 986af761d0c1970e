"""Logs, exponentials and ratios that stay finite, in value and in gradient, wherever a loss may meet them."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

RATIO_LIMIT = 20.0
"""Importance ratios are exp(clamp(difference of log-probs, -20, 20)): no effect in normal operation, never inf * 0."""

EXP_LIMIT = 30.0
"""Exponentials of log-ratios in a loss go on as straight lines beyond this exponent (see `exp_bounded`)."""


def logsigmoid(x: Tensor) -> Tensor:
    """log sigma(x) = -softplus(-x), finite for every finite x."""
    return -softplus(-x)


def smoothed_logistic(logit: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """-(1 - eps) log sigma(x) - eps log sigma(-x): the logistic loss where a share eps of labels may be flipped."""
    return (1 - label_smoothing) * softplus(-logit) + label_smoothing * softplus(logit)


def exp_bounded(x: Tensor, limit: float = EXP_LIMIT) -> Tensor:
    """e^x up to `limit`, then its tangent: e^limit (1 + x - limit).

    Value and gradient are continuous and increasing, and finite in float32 for every x that a log-ratio can be. A
    plain clamp would make the gradient vanish exactly where the loss is largest.
    """
    return torch.exp(x.clamp(max=limit)) + math.exp(limit) * torch.relu(x - limit)


def expm1_bounded(x: Tensor, limit: float = EXP_LIMIT) -> Tensor:
    """e^x - 1 without cancellation near 0, with the tangent of `exp_bounded` beyond `limit`."""
    return torch.expm1(x.clamp(max=limit)) + math.exp(limit) * torch.relu(x - limit)


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - e^x) for x < 0, with finite gradients.

    log(-expm1(x)) is accurate for x > -log 2, log1p(-e^x) below. The second branch gets an input from its own side
    only: near 0 its gradient is infinite, and infinity times the 0 of `torch.where` is NaN. The first has no such
    place. At x = 0 the value is -inf: clamp before.
    """
    near = x > -math.log(2.0)
    half = torch.full_like(x, -math.log(2.0))
    return torch.where(
        near,
        torch.log(-torch.expm1(x)),
        torch.log1p(-torch.exp(torch.where(near, half, x))),
    )


def log_odds(mean_logps: Tensor) -> Tensor:
    """log(P / (1 - P)) for P = e^mean_logps, finite at P = 1.

    Log-probs are clamped at -1e-7 (-1e-15 in float64), which caps the log-odds at 16.1 (34.5); the gradient is 1/(1-P)
    below the clamp and 0 above it.
    """
    ceiling = -1e-15 if mean_logps.dtype == torch.float64 else -1e-7
    clamped = mean_logps.clamp(max=ceiling)
    return clamped - log1mexp(clamped)


def choose(condition: Tensor, if_true: float, if_false: float, like: Tensor) -> Tensor:
    """One of two numbers by `condition`, in the dtype of `like`; `torch.where` of two floats would round to float32."""
    return torch.full_like(condition, if_false, dtype=like.dtype).masked_fill(condition, if_true)


def importance_ratio(log_ratio: Tensor) -> Tensor:
    """exp(clamp(log_ratio, -20, 20))."""
    return torch.exp(log_ratio.clamp(-RATIO_LIMIT, RATIO_LIMIT))


def widen(values: Tensor) -> Tensor:
    """`values` in float32 at least: sums and log-softmax in bfloat16 lose whole nats."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values
