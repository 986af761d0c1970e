"""The passes over logits as kernels for a card, where reading and writing them takes longer than multiplying.

    statistics   one pass that reads:  log-probability, log-sum-exp, entropy and the rest, added up in float32 online
    gradient     one pass that reads and writes:  the gradient of the raw logits, from what the first pass found

PyTorch's operators make six passes and more of the same (`softmax.py`), which remains the reference and serves wherever
these do not run. `kernels_for` tries them against it, in float64, before their first use on a device.

The maximum m and the sums below move from block to block of a row (x = z / T, d = x - m):

    s = sum exp d,  t = sum d exp d,  u = sum exp 2d
    where m grows by g:  t = e^-g (t - g s),  s = e^-g s,  u = e^-2g u
    lse = m + log s,  entropy = log s - t / s,  log sum p^2 = log u - 2 log s

m and log s are kept apart: their sum, in float32, would cost the gradient of large logits its digits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from strop.model.lm_head import Reading
from strop.model.softmax import TokenStatistics

try:
    import triton
    import triton.language as tl
except ImportError:  # PyTorch brings it for CUDA on Linux, and not else
    triton = None

MOST_COLUMNS = 4096
"""Logits of a row that a program holds at a time."""


def _jit(function: Callable[..., Any]) -> Any:
    return function if triton is None else triton.jit(function)


@_jit
def _logits(start, bias, columns, inside, scale, softcap):  # type: ignore[no-untyped-def]
    z = tl.load(start + columns, mask=inside, other=0.0).to(tl.float32)
    if bias is not None:
        z += tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
    z *= scale
    if softcap is not None:
        shrunk = tl.exp(-2.0 * tl.abs(z / softcap))
        bent = softcap * ((1.0 - shrunk) / (1.0 + shrunk))
        z = tl.where(z < 0.0, -bent, bent)
    return z


@_jit
def _statistics_kernel(  # type: ignore[no-untyped-def]
    raw, row_stride, targets, bias, logps, lse, anchors, entropy, top1, log_square, mean_logit,
    vocabulary, scale, softcap, temperature, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)  # an offset of a row may pass 2^31
    start = raw + row * row_stride
    target = tl.load(targets + row)
    at_target = _logits(start, bias, target, target >= 0, scale, softcap) / temperature
    top = float("-inf")
    total = 0.0
    weighted = 0.0
    squares = 0.0
    added = 0.0
    better = 0
    for first in range(0, vocabulary, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        inside = columns < vocabulary
        z = _logits(start, bias, columns, inside, scale, softcap)
        if mean_logit is not None:
            added += tl.sum(tl.where(inside, z, 0.0), 0)
        x = tl.where(inside, z / temperature, float("-inf"))
        if top1 is not None:  # of equal logits the first is the most probable
            ahead = (x > at_target) | ((x == at_target) & (columns < target))
            better += tl.sum(ahead.to(tl.int32), 0)
        risen = tl.maximum(top, tl.max(x, 0))
        base = tl.where(risen == float("-inf"), 0.0, risen)  # no token of these blocks is possible
        growth = tl.where(top == float("-inf"), 0.0, base - top)
        kept = tl.where(top == float("-inf"), 0.0, tl.exp(-growth))
        d = x - base
        e = tl.exp(d)
        if entropy is not None:
            weighted = kept * (weighted - growth * total) + tl.sum(tl.where(e > 0.0, e * d, 0.0), 0)
        if log_square is not None:
            squares = kept * kept * squares + tl.sum(e * e, 0)
        total = kept * total + tl.sum(e, 0)
        top = risen
    log_total = tl.log(total)
    tl.store(logps + row, at_target - top - log_total)
    tl.store(lse + row, top + log_total)
    tl.store(anchors + 3 * row, top)
    tl.store(anchors + 3 * row + 1, log_total)
    if entropy is not None:
        tl.store(entropy + row, log_total - weighted / total)
    if log_square is not None:
        tl.store(log_square + row, tl.log(squares) - 2.0 * log_total)
    if mean_logit is not None:
        tl.store(mean_logit + row, added / vocabulary)
    if top1 is not None:
        tl.store(top1 + row, tl.where(better == 0, 1, 0).to(tl.uint8))


@_jit
def _gradient_kernel(  # type: ignore[no-untyped-def]
    raw, row_stride, targets, bias, anchors, factor, bonus, entropy, out, out_stride,
    vocabulary, scale, softcap, temperature, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < vocabulary
    z = _logits(raw + row * row_stride, bias, columns, inside, scale, softcap)
    log_p = z / temperature - tl.load(anchors + 3 * row) - tl.load(anchors + 3 * row + 1)
    p = tl.exp(log_p)
    found = tl.where(columns == tl.load(targets + row), tl.load(anchors + 3 * row + 2), p)
    if factor is not None:
        found *= tl.load(factor + row)
    if bonus is not None:
        spread = tl.where(p > 0.0, p * (log_p + tl.load(entropy + row)), 0.0)
        found -= tl.load(bonus + row) * spread
    if softcap is not None:
        bent = z / softcap
        found *= 1.0 - bent * bent
    tl.store(out + row * out_stride + columns, found.to(out.dtype.element_ty), mask=inside)


def statistics(
    raw: torch.Tensor, targets: torch.Tensor, into: TokenStatistics, anchors: torch.Tensor, reading: Reading
) -> None:
    """Fill `into` with the statistics of raw logits, which stay as they are.

    Args:
        raw: (n, V) float32, bfloat16 or float16, rows contiguous.
        targets: (n,).
        into: statistics of these n tokens; those that are None are not computed.
        anchors: (n, 3) float32; filled with what `gradient` needs: the greatest z / T, the logarithm of the sum of
            exponentials beside it, and expm1(log-probability), the residual at the target.
    """
    rows, vocabulary = raw.shape
    if not rows:
        return
    most_probable = None if into.top1 is None else into.top1.view(torch.uint8)
    with torch.cuda.device_of(raw):
        _statistics_kernel[(rows,)](
            raw, raw.stride(0), targets.contiguous(), reading.bias, into.logps, into.lse, anchors, into.entropy,
            most_probable, into.log_square, into.mean_logit, vocabulary, reading.scale, reading.softcap,
            reading.temperature, BLOCK=columns_at_once(vocabulary), num_warps=8,
        )  # fmt: skip
    torch.expm1(into.logps, out=anchors[:, 2])


def gradient(
    raw: torch.Tensor,
    targets: torch.Tensor,
    anchors: torch.Tensor,
    out: torch.Tensor,
    reading: Reading,
    *,
    factor: torch.Tensor | None = None,
    bonus: torch.Tensor | None = None,
    entropy: torch.Tensor | None = None,
) -> torch.Tensor:
    """d z / d (scale raw) (factor (softmax(z / T) - onehot) - bonus p (log p + entropy)), (n, V), written to `out`.

    Args:
        raw: (n, V), as given to `statistics`.
        targets: (n,).
        anchors: (n, 3), as `statistics` left them.
        out: (n, V), rows contiguous; may be `raw` itself.
        factor: (n,) float32, or None for 1.
        bonus, entropy: (n,) float32, or None for a gradient without the entropy's.
    """
    rows, vocabulary = raw.shape
    if not rows:
        return out
    block = columns_at_once(vocabulary)
    with torch.cuda.device_of(raw):
        _gradient_kernel[(rows, triton.cdiv(vocabulary, block))](
            raw, raw.stride(0), targets.contiguous(), reading.bias, anchors, factor, bonus,
            None if bonus is None else entropy, out, out.stride(0), vocabulary, reading.scale, reading.softcap,
            reading.temperature, BLOCK=block, num_warps=8,
        )  # fmt: skip
    return out


def columns_at_once(vocabulary: int) -> int:
    """How many logits of a row a program holds at a time: a power of two."""
    return min(MOST_COLUMNS, 1 << max(0, vocabulary - 1).bit_length())
