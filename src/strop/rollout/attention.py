"""Attention for rollouts: many rows of few queries against cached keys, in parts that can be merged.

The output over a set of keys is known by `o` (softmax-weighted values) and `lse = log sum exp(scores)`. Two disjoint
sets of keys merge exactly:

    lse = logaddexp(lse_1, lse_2);   o = o_1 exp(lse_1 - lse) + o_2 exp(lse_2 - lse)

so the keys of a prompt are stored once and read once for all its completions, and each completion's own keys are a
second part. Query heads that share a key/value head are laid out as further queries of that head, so nothing is
repeated in memory.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F

_CHUNK = 512  # queries at a time where scores have to be written out
_CPU_FLASH_DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scale: float,
    bias: torch.Tensor | None = None,
    softcap: float | None = None,
    exact_empty: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of every query to every key, and the log of the sum of exponentials.

    Args:
        query: (B, Hk, Q, D).
        key: (B, Hk, T, D).
        value: (B, Hk, T, Dv).
        scale: multiplies the scores.
        bias: added to the scores, 0 or -inf, broadcastable to (B, Hk, Q, T).
        softcap: scores become `softcap * tanh(score / softcap)` before the bias (Gemma 2).
        exact_empty: a query may have all its keys excluded; its output is then 0 and its lse -inf.

    Returns:
        o (B, Hk, Q, Dv) in the dtype of `value` and lse (B, Hk, Q) in float32 or wider.
    """
    flash = (
        query.device.type == "cpu"
        and softcap is None
        and not exact_empty
        and query.dtype in _CPU_FLASH_DTYPES
        and query.shape[-1] == value.shape[-1]
        and _flash_on_cpu_works()
    )
    if flash:
        return _flash_on_cpu(query, key, value, scale, bias)
    scores = torch.matmul(query, key.transpose(-1, -2))  # (B, Hk, Q, T)
    if scores.dtype not in (torch.float32, torch.float64):
        scores = scores.float()
    scores = scores * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias
    lse = scores.logsumexp(-1)  # (B, Hk, Q)
    weights = (scores - lse[..., None]).exp()  # (B, Hk, Q, T)
    if exact_empty:
        weights = weights.masked_fill((lse == -math.inf)[..., None], 0.0)
    return torch.matmul(weights.to(value.dtype), value), lse


def merge(
    out_1: torch.Tensor, lse_1: torch.Tensor, out_2: torch.Tensor, lse_2: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over the union of two disjoint sets of keys; `out` (..., D) and `lse` (...) as `attend` gives them."""
    lse = torch.logaddexp(lse_1, lse_2)
    out = out_1 * (lse_1 - lse).exp()[..., None] + out_2 * (lse_2 - lse).exp()[..., None]
    return out.to(out_1.dtype), lse


def add_sink(out: torch.Tensor, lse: torch.Tensor, sink: torch.Tensor) -> torch.Tensor:
    """Attention where a learned score per head joins the softmax and has no value: `o * sigmoid(lse - sink)`."""
    return (out * torch.sigmoid(lse - sink)[..., None]).to(out.dtype)


def causal(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sink: torch.Tensor | None = None,
) -> torch.Tensor:
    """Causal attention within one sequence, (1, H, L, Dv).

    A query at position q sees keys j with `q - window < j <= q`; the queries are those of the last L of T positions.

    Args:
        query: (1, H, L, D).
        key, value: (1, Hk, T, D), (1, Hk, T, Dv), T >= L; H is a multiple of Hk.
        sink: (H,) learned score per head.
    """
    length, heads, groups = query.shape[2], query.shape[1], query.shape[1] // key.shape[1]
    before = key.shape[2] - length
    if before == 0 and softcap is None and sink is None and (window is None or length <= window):
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=groups > 1)
    parts = []
    for start in range(0, length, _CHUNK):
        stop = min(start + _CHUNK, length)
        first = 0 if window is None else max(0, before + start - window + 1)
        q = torch.arange(before + start, before + stop, device=query.device)[:, None]  # (Q, 1)
        j = torch.arange(first, before + stop, device=query.device)[None, :]  # (1, T)
        hidden = (j > q) if window is None else (j > q) | (j <= q - window)  # (Q, T)
        bias = torch.zeros(hidden.shape, dtype=query.dtype, device=query.device).masked_fill_(hidden, -math.inf)
        packed = query[:, :, start:stop].reshape(1, key.shape[1], groups * (stop - start), -1)  # (1, Hk, g Q, D)
        out, lse = attend(
            packed,
            key[:, :, first : before + stop],
            value[:, :, first : before + stop],
            scale=scale,
            bias=bias.repeat(groups, 1)[None, None],  # (1, 1, g Q, T)
            softcap=softcap,
        )
        out = out.reshape(1, heads, stop - start, -1)  # (1, H, Q, Dv)
        if sink is not None:
            out = add_sink(out, lse.reshape(1, heads, stop - start), sink[None, :, None])
        parts.append(out)
    return torch.cat(parts, 2)


def _flash_on_cpu(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """torch's own CPU flash attention, called below `scaled_dot_product_attention` because that hides the lse."""
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, False, attn_mask=bias, scale=scale
    )
    return out, lse


@functools.cache
def _flash_on_cpu_works() -> bool:
    """Whether the private operator of this torch agrees with the plain formula; tested once per process."""
    grid = torch.arange(2 * 2 * 5 * 8, dtype=torch.float32).view(2, 2, 5, 8)
    key, value = torch.sin(grid), torch.cos(grid)
    query = torch.sin(grid[:, :, :3] * 0.7)
    bias = torch.zeros(2, 1, 1, 5)
    bias[1, ..., 4] = -math.inf
    try:
        out, lse = _flash_on_cpu(query, key, value, 0.3, bias)
        scores = query @ key.transpose(-1, -2) * 0.3 + bias
        good = torch.allclose(lse.float(), scores.logsumexp(-1), atol=1e-5)
        return good and torch.allclose(out, scores.softmax(-1) @ value, atol=1e-5)
    except (RuntimeError, AttributeError, TypeError):
        return False
