"""A contrastive loss on hidden states, an auxiliary term for CPO."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from strop.losses.names import CONTRASTIVE_NEGATIVES, check_name, check_range
from strop.losses.numerics import widen
from strop.losses.segments import segment_mean


def pool_hidden(hidden: Tensor, segment: Tensor, num_completions: int) -> Tensor:
    """Hidden states (N, H) averaged over the scored tokens of each completion, in float32 at least, (S, H)."""
    return segment_mean(widen(hidden), segment, num_completions)


def contrastive_hidden_loss(
    hidden_chosen: Tensor,
    hidden_rejected: Tensor,
    anchor: Tensor,
    *,
    temperature: float = 1.0,
    negatives: str = "pair",
) -> Tensor:
    """Pull the chosen completion's hidden state towards an anchor, away from the rejected one's.

    -log( e^(sim(h_w, h_ref)/T) / sum_i e^(sim(h_i, h_ref)/T) ), sim the cosine similarity. With `negatives="pair"` the
    candidates i are the pair itself, so the value is softplus(-(sim_w - sim_l)/T); with `in_batch` they are all
    chosen and rejected completions given.

    Args:
        hidden_chosen, hidden_rejected: (B, H) the policy's final hidden states, pooled (`pool_hidden`).
        anchor: (B, H) pooled states of the reference model; no gradient flows into it.
        temperature: T > 0. 1 is the literal formula, which keeps the pair form within [0.127, 2.127]; 0.1 is usual.
        negatives: `pair` or `in_batch`; in_batch needs all pairs of the step in one call.

    Returns:
        (B,).

    Raises:
        ConfigError: unknown `negatives`, temperature not above 0.

    It is a regulariser of representations, not a preference loss: the output head gets no gradient, and rotating
    features can minimise it without changing a single preference. Use it beside the likelihood of the chosen
    completions.
    """
    check_name(negatives, CONTRASTIVE_NEGATIVES, "negatives")
    check_range(temperature, "temperature", torch.finfo(torch.float32).tiny, float("inf"))
    chosen, rejected, anchor = widen(hidden_chosen), widen(hidden_rejected), widen(anchor.detach())
    if negatives == "pair":
        gap = _cosine(chosen, anchor) - _cosine(rejected, anchor)
        return softplus(-gap / temperature)
    candidates = torch.cat([chosen, rejected])  # (2B, H)
    similarities = _cosine(candidates[None], anchor[:, None]) / temperature  # (B, 2B)
    return similarities.logsumexp(dim=1) - similarities.diagonal()


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    norms = torch.linalg.vector_norm(a, dim=-1) * torch.linalg.vector_norm(b, dim=-1)
    return (a * b).sum(-1) / norms.clamp(min=1e-8)
