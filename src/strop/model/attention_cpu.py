"""Attention over a flat row with PyTorch's flash kernel for the CPU, common beginnings shared.

A segment sees itself (causally) and each of its ancestors (all of it): a kernel call for each, merged one after the
other by their log-sum-exp,

    lse = logaddexp(lse_before, lse_cross),    o = o_before exp(lse_before - lse) + o_cross exp(lse_cross - lse).

All descendants of a segment are one call on it. The kernel's backward recomputes exp(s - lse) and rowsum(do * o) from
what it is given. With the finally merged o and lse each call therefore yields its exact part of the gradient, at any
depth: dq adds up over a token's calls, dk and dv of a segment are those of its own causal call plus those of the call
of all below it. (This is the identity that ring attention rests on, arXiv 2310.01889.)

The same merge serves long causal stretches: the kernel computes scores in blocks of up to 512 keys, those above the
diagonal too, so a stretch is cut into blocks of `CAUSAL_BLOCK` tokens that see what stands before them in full.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from strop.model.segments import Segments, Span

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

CAUSAL_BLOCK = 256


def _calls(segments: Segments) -> Iterator[tuple[Span, Span, bool]]:
    """(queries, keys, causal) of every kernel call; each token's causal call comes before all others on it."""
    for span in segments.spans:
        for start in range(span.start, span.end, CAUSAL_BLOCK):
            block = Span(start, min(CAUSAL_BLOCK, span.end - start))
            yield block, block, True
            if start > span.start:
                yield block, Span(span.start, start - span.start), False
    for below, span in segments.crossings:
        yield below, span, False


def cpu_flash_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments, *, scale: float
) -> torch.Tensor:
    """As `dense_attention` without options: (1, Hq, T, D), (1, Hk, T, D), (1, Hk, T, D) -> (1, T, Hq, D)."""
    return _CpuFlash.apply(query, key, value, segments, scale)


class _CpuFlash(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, segments: Segments, scale: float):  # type: ignore[override]
        heads, total, width = query.shape[1:]
        wide = torch.promote_types(query.dtype, torch.float32)
        # Merged more than once, outputs are rounded once, at the end.
        out = query.new_empty(1, total, heads, width, dtype=wide if segments.deep else query.dtype)  # (1, T, Hq, D)
        by_head = out.transpose(1, 2)  # (1, Hq, T, D), the same memory
        lse = query.new_empty(1, heads, total, dtype=wide)  # (1, Hq, T)

        for queries, keys, causal in _calls(segments):
            part, part_lse = _forward(
                query[:, :, queries.slice],
                key[:, :, keys.slice],
                value[:, :, keys.slice],
                0.0,
                causal,
                attn_mask=None,
                scale=scale,
            )
            if causal:
                by_head[:, :, queries.slice], lse[:, :, queries.slice] = part, part_lse
                continue
            before = lse[:, :, queries.slice]
            merged = torch.logaddexp(before, part_lse)  # (1, Hq, L)
            own = by_head[:, :, queries.slice] * (before - merged).exp().unsqueeze(-1)
            by_head[:, :, queries.slice] = own.addcmul_(part, (part_lse - merged).exp().unsqueeze(-1))
            lse[:, :, queries.slice] = merged

        out = out.to(query.dtype)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.segments, ctx.scale = segments, scale
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):  # type: ignore[override]
        query, key, value, out, lse = ctx.saved_tensors
        by_head, grad = out.transpose(1, 2), grad.transpose(1, 2)
        d_query, d_key, d_value = (torch.empty_like(x) for x in (query, key, value))

        for queries, keys, causal in _calls(ctx.segments):
            parts = _backward(
                grad[:, :, queries.slice],
                query[:, :, queries.slice],
                key[:, :, keys.slice],
                value[:, :, keys.slice],
                by_head[:, :, queries.slice],
                lse[:, :, queries.slice].contiguous(),
                0.0,
                causal,
                attn_mask=None,
                scale=ctx.scale,
            )
            for total, span, part in zip((d_query, d_key, d_value), (queries, keys, keys), parts, strict=True):
                if causal:
                    total[:, :, span.slice] = part
                else:
                    total[:, :, span.slice] += part
        return d_query, d_key, d_value, None, None
