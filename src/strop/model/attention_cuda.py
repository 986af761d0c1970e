"""Attention over a flat row with PyTorch's variable-length flash kernel for CUDA, common beginnings shared.

The same calls and the same merge as on the CPU (see `attention_cpu`), but a call takes many stretches at once, told
apart by cumulative lengths: one causal call over the whole row, one from all that hangs on roots to all of these roots,
and one for each deeper segment with descendants.
bfloat16 and float16, head size a multiple of 8 up to 256. The operators are private to PyTorch, so `attention` tests
them against the dense path before it uses them.
"""

from __future__ import annotations

from itertools import accumulate
from typing import NamedTuple

import torch

from strop.device import sent
from strop.model.segments import Segments, Span

_forward = torch.ops.aten._flash_attention_forward
_backward = torch.ops.aten._flash_attention_backward


def cuda_flash_serves(query: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether dtype and head sizes are ones that the kernel takes."""
    width = query.shape[-1]
    half = query.dtype in (torch.bfloat16, torch.float16)
    return half and width == value.shape[-1] and width <= 256 and width % 8 == 0


def cuda_flash_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments, *, scale: float
) -> torch.Tensor:
    """As `dense_attention` without options: (1, Hq, T, D), (1, Hk, T, D), (1, Hk, T, D) -> (1, T, Hq, D)."""
    rows = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))  # (T, H, D) each
    rows = (x if x.stride(-1) == 1 else x.contiguous() for x in rows)
    return _CudaFlash.apply(*rows, _calls(segments, query.device), segments.deep, scale).unsqueeze(0)


class _Call(NamedTuple):
    """Stretches of queries and keys, each of them neighbours in the row; queries of one see all keys of its partner."""

    queries: slice
    keys: slice
    lengths: tuple[torch.Tensor, torch.Tensor, int, int]  # cumulative, and the longest, of both

    @classmethod
    def of(cls, pairs: list[tuple[Span, Span]], device: torch.device) -> _Call:
        queries, keys = ([pair[side] for pair in pairs] for side in (0, 1))
        own, seen = ([span.length for span in spans] for spans in (queries, keys))
        starts, seen_starts = (sent([0, *accumulate(each)], device, dtype=torch.int32) for each in (own, seen))
        return cls(
            slice(queries[0].start, queries[-1].end),
            slice(keys[0].start, keys[-1].end),
            (starts, seen_starts, max(own), max(seen)),
        )


def _calls(segments: Segments, device: torch.device) -> list[_Call]:
    """The causal call, and then those between segments; made once per batch and device."""
    name = ("cumulative lengths", device)
    if name not in segments.derived:
        roots = {span for span, parent in zip(segments.spans, segments.parents, strict=True) if parent < 0}
        on_roots = [pair for pair in segments.crossings if pair[1] in roots]
        groups = [[(span, span) for span in segments.spans], *([on_roots] if on_roots else [])]
        groups += [[pair] for pair in segments.crossings if pair[1] not in roots]
        segments.derived[name] = [_Call.of(pairs, device) for pairs in groups]
    return segments.derived[name]


class _CudaFlash(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, calls: list[_Call], deep: bool, scale: float):  # type: ignore[override]
        out, lse, seed, unused, _ = _forward(
            query, key, value, *calls[0].lengths, 0.0, True, False, scale=scale
        )  # (T, Hq, D), (Hq, T)
        if lse.dim() != 2:
            raise RuntimeError(
                f"the flash kernel returned log-sum-exps of shape {tuple(lse.shape)}, not (heads, tokens)"
            )
        if deep:  # merged more than once: rounded once, at the end
            out = out.to(lse.dtype)
        for call in calls[1:]:
            cross, cross_lse, *_ = _forward(
                query[call.queries],
                key[call.keys],
                value[call.keys],
                *call.lengths,
                0.0,
                False,
                False,
                scale=scale,
            )
            before = lse[:, call.queries]
            merged = torch.logaddexp(before, cross_lse)  # (Hq, L)
            own_share = (before - merged).exp().t().unsqueeze(-1)  # (L, Hq, 1)
            cross_share = (cross_lse - merged).exp().t().unsqueeze(-1)
            out[call.queries] = (out[call.queries] * own_share).addcmul_(cross, cross_share)
            lse[:, call.queries] = merged
        out = out.to(query.dtype)
        ctx.save_for_backward(query, key, value, out, lse, seed, unused)
        ctx.calls, ctx.scale = calls, scale
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):  # type: ignore[override]
        query, key, value, out, lse, seed, unused = ctx.saved_tensors
        calls, grad = ctx.calls, grad.contiguous()

        def parts(call: _Call, causal: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            queries, keys = call.queries, call.keys
            return _backward(
                grad[queries],
                query[queries],
                key[keys],
                value[keys],
                out[queries],
                lse[:, queries].contiguous(),
                *call.lengths,
                0.0,
                causal,
                seed,
                unused,
                scale=ctx.scale,
            )

        d_query, d_key, d_value = parts(calls[0], True)
        for call in calls[1:]:
            cross = parts(call, False)
            d_query[call.queries] += cross[0]
            d_key[call.keys] += cross[1]
            d_value[call.keys] += cross[2]
        return d_query, d_key, d_value, None, None, None
