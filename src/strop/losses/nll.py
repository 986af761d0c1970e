"""Losses of supervised fine-tuning, one value per scored token."""

from __future__ import annotations

from torch import Tensor

from strop.losses.names import SFT_LOSS_TYPES, check_name


def nll_loss(logps: Tensor) -> Tensor:
    """Negative log-likelihood: -log p.

    Args:
        logps: (N,) log-probs of the scored tokens, nats.

    Returns:
        (N,); a step's loss is the sum over the number of scored tokens of the whole step.
    """
    return -logps


def dft_loss(logps: Tensor) -> Tensor:
    """Dynamic fine-tuning: -sg(p) log p, so that the gradient of a token is its probability.

    Args:
        logps: (N,) log-probs of the scored tokens, nats.

    Returns:
        (N,), reduced like `nll_loss`.

    Source: arXiv 2508.05629.
    """
    return -logps.detach().exp() * logps


def sft_loss(logps: Tensor, *, loss_type: str = "nll") -> Tensor:
    """`nll_loss` or `dft_loss` by name, (N,)."""
    check_name(loss_type, SFT_LOSS_TYPES, "loss_type")
    return nll_loss(logps) if loss_type == "nll" else dft_loss(logps)
