"""Softmax statistics of scored tokens, computed inside the buffer that holds their logits.

The logits of scored tokens are the largest tensors there are. They are therefore overwritten, block by block, by

    residual = softmax(z) - onehot(target),

which is minus the gradient of the log-probability, so that backward is two matrix products and nothing else. The
target's entry is computed as expm1(log p), which keeps the gradient of confident tokens exact in low precision too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from strop.model.lm_head import LMHead
from strop.records import Want

# Logits worked on at a time: on a CPU they stay in the cache between the passes, elsewhere copies of them stay small.
_CPU_BLOCK_BYTES, _BLOCK_BYTES = 4 << 20, 256 << 20
# A token that far below the most probable one has probability 0, in float64 too; minus infinity times 0 is no number.
_DEEP = -1e4


@dataclass(slots=True)
class TokenStatistics:
    """One entry per scored token; None where not asked for. All without gradient."""

    logps: torch.Tensor  # (N,) nats
    lse: torch.Tensor  # (N,) log-sum-exp of the logits over temperature
    entropy: torch.Tensor | None = None  # (N,) nats
    top1: torch.Tensor | None = None  # (N,) bool
    log_square: torch.Tensor | None = None  # (N,) log sum_v p(v)^2
    mean_logit: torch.Tensor | None = None  # (N,) of the logits before temperature

    @classmethod
    def empty(cls, count: int, want: Want, like: torch.Tensor) -> TokenStatistics:
        def column(flag: Want, dtype: torch.dtype | None = None) -> torch.Tensor | None:
            return like.new_empty(count, dtype=dtype) if want & flag else None

        return cls(
            like.new_empty(count),
            like.new_empty(count),
            column(Want.ENTROPY),
            column(Want.TOP1, torch.bool),
            column(Want.LOG_SQUARE),
            column(Want.MEAN_LOGIT),
        )

    def slice(self, rows: slice) -> TokenStatistics:
        return TokenStatistics(*(None if x is None else x[rows] for x in self.columns()))  # type: ignore[arg-type]

    def columns(self) -> tuple[torch.Tensor | None, ...]:
        return (self.logps, self.lse, self.entropy, self.top1, self.log_square, self.mean_logit)


def softmax_residual_(
    logits: torch.Tensor, targets: torch.Tensor, into: TokenStatistics, *, temperature: float = 1.0
) -> torch.Tensor:
    """Fill `into` and turn the logits into softmax(logits / temperature) - onehot(targets), in place.

    Args:
        logits: (n, V) float32 or float64; overwritten.
        targets: (n,).
        into: statistics of these n tokens; those that are None are not computed.
        temperature: > 0.
    """
    size = _CPU_BLOCK_BYTES if logits.device.type == "cpu" else _BLOCK_BYTES
    rows = max(1, size // (logits.shape[1] * logits.element_size()))
    for start in range(0, logits.shape[0], rows):
        block = slice(start, start + rows)
        _block_(logits[block], targets[block].unsqueeze(1), into.slice(block), temperature)
    return logits


def _block_(z: torch.Tensor, targets: torch.Tensor, into: TokenStatistics, temperature: float) -> None:
    if into.mean_logit is not None:
        into.mean_logit.copy_(z.mean(1))
    if temperature != 1.0:
        z.div_(temperature)
    if into.top1 is not None:
        into.top1.copy_(z.argmax(1) == targets.squeeze(1))
    top = z.amax(1, keepdim=True)  # (n, 1)
    z.sub_(top)
    at_target = z.gather(1, targets)  # (n, 1)
    shifted = z.clamp(min=_DEEP) if into.entropy is not None else None
    z.exp_()
    total = z.sum(1, keepdim=True)  # (n, 1)
    z.div_(total)
    log_total = total.log_()
    logps = at_target.sub_(log_total)
    into.logps.copy_(logps.squeeze(1))
    into.lse.copy_((top + log_total).squeeze(1))
    if into.entropy is not None and shifted is not None:
        into.entropy.copy_(log_total.squeeze(1) - _row_dot(z, shifted))
    if into.log_square is not None:
        into.log_square.copy_(_row_dot(z, z).log_())
    z.scatter_(1, targets, logps.expm1())


def _row_dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """sum_v a[n, v] b[n, v] without a third (n, V) tensor, (n,)."""
    return torch.bmm(a.unsqueeze(1), b.unsqueeze(2)).reshape(-1)


def logit_gradient(
    residual: torch.Tensor,
    targets: torch.Tensor,
    grad_logps: torch.Tensor,
    grad_entropy: torch.Tensor | None,
    logps: torch.Tensor,
    lse: torch.Tensor,
    entropy: torch.Tensor | None,
    head: LMHead,
    temperature: float,
) -> torch.Tensor:
    """d loss / d raw logits, (n, V); with `grad_entropy` None without that of the entropy.

    With q = softmax(z / T): d log q_y / dz = (onehot - q) / T, d H / dz_v = -q_v (log q_v + H) / T, and a cap
    multiplies by d z / d raw, which is a function of z = T (log q + lse). The target's log q comes from `logps`: its
    residual q - 1 does not tell small q apart.
    """
    grad = residual * (grad_logps.unsqueeze(1) / -temperature)  # (n, V)
    if head.softcap is None and grad_entropy is None:
        return grad.mul_(head.scale)
    at_target, known = targets.unsqueeze(1), logps.unsqueeze(1).clamp(min=_DEEP)  # (n, 1)
    q = residual.scatter(1, at_target, known.exp()).clamp_(min=torch.finfo(residual.dtype).tiny)
    log_q = q.log().scatter_(1, at_target, known)  # (n, V)
    if grad_entropy is not None and entropy is not None:
        bonus = (log_q + entropy.unsqueeze(1)).mul_(q)
        grad.sub_(bonus.mul_(grad_entropy.unsqueeze(1) / temperature))
    logits = log_q.add_(lse.unsqueeze(1)).mul_(temperature)
    return grad.mul_(head.slope(logits))
