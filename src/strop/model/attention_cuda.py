"""Attention over a flat row with PyTorch's variable-length flash kernel for CUDA, prompts shared.

The same two calls and the same merge as on the CPU (see `attention_cpu`), but each call takes all stretches at once,
told apart by cumulative lengths: one causal call over the whole row, one call from all branches to all prompts.
bfloat16 and float16, head size a multiple of 8 up to 256. The operators are private to PyTorch, so `attention` tests
them against the dense path before it uses them.
"""

from __future__ import annotations

from itertools import accumulate

import torch

from strop.model.segments import Segments

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
    return _CudaFlash.apply(*rows, _Lengths.of(segments, query.device), scale).unsqueeze(0)


class _Lengths:
    """Cumulative lengths of the stretches, as the kernel wants them; made once per batch and device."""

    def __init__(self, segments: Segments, device: torch.device) -> None:
        own = [span.length for span in segments.causal_spans]
        prompts = [group.prompt.length for group in segments.groups]
        branches = [group.all_branches.length for group in segments.groups]
        self.own, self.longest_own = _cumulative(own, device), max(own)
        self.shares = bool(prompts)
        if self.shares:
            self.prompts, self.longest_prompt = _cumulative(prompts, device), max(prompts)
            self.branches, self.longest_branches = _cumulative(branches, device), max(branches)
            self.prompts_end = segments.groups[-1].prompt.end  # prompts are the first tokens of the row
            self.branches_start = segments.groups[0].branches[0].start  # branches are the last

    @classmethod
    def of(cls, segments: Segments, device: torch.device) -> _Lengths:
        name = ("cumulative lengths", device)
        if name not in segments.derived:
            segments.derived[name] = cls(segments, device)
        return segments.derived[name]


def _cumulative(lengths: list[int], device: torch.device) -> torch.Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)


class _CudaFlash(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, lengths: _Lengths, scale: float):  # type: ignore[override]
        n = lengths
        out, lse, seed, unused, _ = _forward(
            query, key, value, n.own, n.own, n.longest_own, n.longest_own, 0.0, True, False, scale=scale
        )  # (T, Hq, D), (Hq, T)
        if lse.dim() != 2:
            raise RuntimeError(
                f"the flash kernel returned log-sum-exps of shape {tuple(lse.shape)}, not (heads, tokens)"
            )
        if n.shares:
            start = n.branches_start
            cross, cross_lse, *_ = _forward(
                query[start:],
                key[: n.prompts_end],
                value[: n.prompts_end],
                n.branches,
                n.prompts,
                n.longest_branches,
                n.longest_prompt,
                0.0,
                False,
                False,
                scale=scale,
            )
            own_lse = lse[:, start:]
            merged = torch.logaddexp(own_lse, cross_lse)  # (Hq, L)
            own_share = (own_lse - merged).exp().t().unsqueeze(-1)  # (L, Hq, 1)
            cross_share = (cross_lse - merged).exp().t().unsqueeze(-1)
            out[start:] = (out[start:] * own_share).addcmul_(cross, cross_share)
            lse[:, start:] = merged
        ctx.save_for_backward(query, key, value, out, lse, seed, unused)
        ctx.lengths, ctx.scale = lengths, scale
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):  # type: ignore[override]
        query, key, value, out, lse, seed, unused = ctx.saved_tensors
        n, grad = ctx.lengths, grad.contiguous()
        grads = _backward(
            grad,
            query,
            key,
            value,
            out,
            lse,
            n.own,
            n.own,
            n.longest_own,
            n.longest_own,
            0.0,
            True,
            seed,
            unused,
            scale=ctx.scale,
        )
        d_query, d_key, d_value = grads
        if n.shares:
            start, end = n.branches_start, n.prompts_end
            cross = _backward(
                grad[start:],
                query[start:],
                key[:end],
                value[:end],
                out[start:],
                lse[:, start:].contiguous(),
                n.branches,
                n.prompts,
                n.longest_branches,
                n.longest_prompt,
                0.0,
                False,
                seed,
                unused,
                scale=ctx.scale,
            )
            d_query[start:] += cross[0]
            d_key[:end] += cross[1]
            d_value[:end] += cross[2]
        return d_query, d_key, d_value, None, None
