"""LD-DPO: tokens beyond the length that both completions of a pair share count less."""

from __future__ import annotations

from torch import Tensor

from strop.losses.names import check_range
from strop.losses.segments import segment_positions, segment_sum


def shared_lengths(lengths: Tensor) -> Tensor:
    """For completions in order (chosen, rejected, chosen, rejected, ...): the shorter length of each pair, (S,)."""
    pairs = lengths.reshape(-1, 2)
    return pairs.min(dim=1, keepdim=True).values.expand_as(pairs).reshape(-1)


def ld_logps(logps: Tensor, segment: Tensor, num_completions: int, shared: Tensor, *, alpha: float) -> Tensor:
    """Summed log-probs with the excess length damped: sum_{t <= n} l_t + alpha sum_{t > n} l_t.

    Args:
        logps: (N,) log-probs of the scored tokens, nats. Treat policy and reference alike.
        segment: (N,) completion of each token.
        num_completions: S.
        shared: (S,) n, the shorter length of each pair (`shared_lengths`).
        alpha: in [0, 1]; 1 is plain DPO, 0 ignores the excess.

    Returns:
        (S,).

    Raises:
        ConfigError: alpha outside [0, 1].

    Source: arXiv 2409.06411.
    """
    check_range(alpha, "ld_alpha", 0.0, 1.0, closed_high=True)
    excess = segment_positions(segment, num_completions) >= shared.to(segment.device)[segment]  # (N,)
    return segment_sum(logps * excess.to(logps.dtype).mul(alpha - 1.0).add(1.0), segment, num_completions)
