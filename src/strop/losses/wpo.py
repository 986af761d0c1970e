"""WPO: weights that make off-policy preference pairs count like on-policy ones."""

from __future__ import annotations

from torch import Tensor

from strop.losses.segments import segment_mean


def wpo_alignment(logps: Tensor, log_square: Tensor, segment: Tensor, num_completions: int) -> Tensor:
    """How much a completion looks like one of the policy's own: mean_t [log pi(y_t) - log sum_v pi(v)^2].

    Args:
        logps: (N,) log-probs of the scored tokens, nats.
        log_square: (N,) log sum_v pi(v)^2 of the distributions they were drawn from (`Want.LOG_SQUARE`).
        segment: (N,) completion of each token.
        num_completions: S.

    Returns:
        (S,) without gradient; for samples of the policy itself at most 0 on average (Jensen).
    """
    return segment_mean((logps - log_square).detach(), segment, num_completions)


def wpo_weights(alignment_chosen: Tensor, alignment_rejected: Tensor, *, clamp: bool = True) -> Tensor:
    """Weight of each pair: exp(alignment_w + alignment_l), at most 1.

    Args:
        alignment_chosen, alignment_rejected: (B,) from `wpo_alignment`.
        clamp: cap the weight at 1, as the authors' code does. TRL 1.16 does not.

    Returns:
        (B,) without gradient; multiply it with the pair losses.

    Differs from the paper: Eq. 2 has no cap.

    Source: arXiv 2406.11827, Eq. 2.
    """
    log_weight = (alignment_chosen + alignment_rejected).detach()
    return (log_weight.clamp(max=0.0) if clamp else log_weight).exp()
