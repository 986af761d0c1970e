"""Softmax statistics of scored tokens, computed inside the buffer that holds their logits.

The logits of scored tokens are the largest tensors there are. They are therefore overwritten, block by block, by

    residual = softmax(z) - onehot(target),

which is minus the gradient of the log-probability, so that backward is two matrix products and nothing else. The
target's entry is computed as expm1(log p), which keeps the gradient of confident tokens exact in low precision too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from strop.model.lm_head import Reading
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


def statistics(
    raw: torch.Tensor, targets: torch.Tensor, into: TokenStatistics, anchors: torch.Tensor, reading: Reading
) -> None:
    """Fill `into`, and `anchors` (n, 3) with what `gradient` needs; raw logits become their residual, in place."""
    softmax_residual_(raw, targets, into, reading)
    anchors[:, 0], anchors[:, 1] = into.lse, into.logps


def softmax_residual_(
    raw: torch.Tensor, targets: torch.Tensor, into: TokenStatistics, reading: Reading
) -> torch.Tensor:
    """Fill `into` and turn raw logits into softmax(z / T) - onehot(targets), in place.

    Args:
        raw: (n, V) float32 or float64; overwritten.
        targets: (n,).
        into: statistics of these n tokens; those that are None are not computed.
        reading: z and T.
    """
    z = reading.logits_(raw)
    size = _CPU_BLOCK_BYTES if z.device.type == "cpu" else _BLOCK_BYTES
    rows = max(1, size // (z.shape[1] * z.element_size()))
    for start in range(0, z.shape[0], rows):
        block = slice(start, start + rows)
        _block_(z[block], targets[block].unsqueeze(1), into.slice(block), reading.temperature)
    return z


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


def gradient(
    residual: torch.Tensor,
    targets: torch.Tensor,
    anchors: torch.Tensor,
    out: torch.Tensor,
    reading: Reading,
    *,
    factor: torch.Tensor | None = None,
    bonus: torch.Tensor | None = None,
    entropy: torch.Tensor | None = None,
) -> torch.Tensor:
    """d z / d (scale raw) (factor residual - bonus p (log p + entropy)), (n, V), written to `out`.

    A cap's d z / d (scale raw) is a function of z = T (log p + lse). The target's log p comes from `anchors`: its
    residual p - 1 does not tell small p apart.

    Args:
        residual: (n, V), as `statistics` left it.
        targets, anchors: (n,) and (n, 3), as given to `statistics`.
        out: (n, V); may be `residual` itself.
        factor: (n,), or None for 1, of what is not capped.
        bonus, entropy: (n,), or None for a gradient without the entropy's.
    """
    if factor is None:
        return out if out is residual else out.copy_(residual)
    wide = out if out.dtype == residual.dtype else torch.empty_like(residual)
    if reading.softcap is None and bonus is None:
        return out.copy_(torch.mul(residual, factor.unsqueeze(1), out=wide))
    at_target, known = targets.unsqueeze(1), anchors[:, 1:2].clamp(min=_DEEP)  # (n, 1)
    p = residual.scatter(1, at_target, known.exp()).clamp_(min=torch.finfo(residual.dtype).tiny)
    log_p = p.log().scatter_(1, at_target, known)  # (n, V)
    grad = torch.mul(residual, factor.unsqueeze(1), out=wide)  # in the residual's place, where that is `out`
    if bonus is not None and entropy is not None:
        grad.sub_((log_p + entropy.unsqueeze(1)).mul_(p).mul_(bonus.unsqueeze(1)))
    if reading.softcap is not None:
        z = log_p.add_(anchors[:, :1]).mul_(reading.temperature)
        grad.mul_(1 - z.div_(reading.softcap).square_())
    return out.copy_(grad)
