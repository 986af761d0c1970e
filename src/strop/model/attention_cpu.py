"""Attention over a flat row with PyTorch's flash kernel for the CPU, prompts shared.

A branch sees its prompt (all of it) and itself (causally): two kernel calls, merged by their log-sum-exp,

    lse = logaddexp(lse_self, lse_cross),    o = o_self exp(lse_self - lse) + o_cross exp(lse_cross - lse).

The kernel's backward recomputes exp(s - lse) and rowsum(do * o) from what it is given. With the merged o and lse each
call therefore yields its exact part of the gradient: dq adds up, dk and dv of a prompt are those of its own causal
call plus those of the cross call. (This is the identity that ring attention rests on, arXiv 2310.01889.)
"""

from __future__ import annotations

import torch

from strop.model.segments import Segments, Span

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def cpu_flash_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments, *, scale: float
) -> torch.Tensor:
    """As `dense_attention` without options: (1, Hq, T, D), (1, Hk, T, D), (1, Hk, T, D) -> (1, T, Hq, D)."""
    return _CpuFlash.apply(query, key, value, segments, scale)


class _CpuFlash(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, segments: Segments, scale: float):  # type: ignore[override]
        heads, total, width = query.shape[1:]
        out = query.new_empty(1, total, heads, width)  # (1, T, Hq, D)
        by_head = out.transpose(1, 2)  # (1, Hq, T, D), the same memory
        lse = query.new_empty(1, heads, total, dtype=torch.promote_types(query.dtype, torch.float32))  # (1, Hq, T)

        def attend(queries: Span, keys: Span, causal: bool) -> tuple[torch.Tensor, torch.Tensor]:
            return _forward(
                query[:, :, queries.slice],
                key[:, :, keys.slice],
                value[:, :, keys.slice],
                0.0,
                causal,
                attn_mask=None,
                scale=scale,
            )

        for span in segments.causal_spans:
            by_head[:, :, span.slice], lse[:, :, span.slice] = attend(span, span, True)
        for group in segments.groups:
            span = group.all_branches
            cross, cross_lse = attend(span, group.prompt, False)
            own_lse = lse[:, :, span.slice]
            merged = torch.logaddexp(own_lse, cross_lse)  # (1, Hq, L)
            own = by_head[:, :, span.slice] * (own_lse - merged).exp().unsqueeze(-1)
            by_head[:, :, span.slice] = own.addcmul_(cross, (cross_lse - merged).exp().unsqueeze(-1))
            lse[:, :, span.slice] = merged

        ctx.save_for_backward(query, key, value, out, lse)
        ctx.segments, ctx.scale = segments, scale
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):  # type: ignore[override]
        query, key, value, out, lse = ctx.saved_tensors
        by_head, grad = out.transpose(1, 2), grad.transpose(1, 2)
        d_query, d_key, d_value = (torch.empty_like(x) for x in (query, key, value))

        def attend(queries: Span, keys: Span, causal: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            return _backward(
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

        for span in ctx.segments.causal_spans:
            d_query[:, :, span.slice], d_key[:, :, span.slice], d_value[:, :, span.slice] = attend(span, span, True)
        for group in ctx.segments.groups:
            queries, keys = group.all_branches, group.prompt
            parts = attend(queries, keys, False)
            d_query[:, :, queries.slice] += parts[0]
            d_key[:, :, keys.slice] += parts[1]
            d_value[:, :, keys.slice] += parts[2]
        return d_query, d_key, d_value, None, None
