"""Attention over a flat row with explicit masks: slow, for every option, and what fast kernels are tested against.

Each segment is attended to on its own, with keys = its ancestors + itself. Nothing is merged, so window, softcap,
sinks and dropout mean what they mean in an ordinary row.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from strop.model.segments import Segments


def dense_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segments: Segments,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """softmax(mask(cap(scale * q k^T))) v, segment by segment.

    Args:
        query: (1, Hq, T, D).
        key, value: (1, Hk, T, D) and (1, Hk, T, Dv); Hq is a multiple of Hk.
        segments: of the row.
        scale: factor of the scores.
        window: a token sees at most this many tokens, itself included; None = all.
        softcap: scores become softcap * tanh(scores / softcap).
        sinks: (Hq,) extra logits that take probability and give nothing.
        dropout: probability of dropping an attention weight.

    Returns:
        (1, T, Hq, Dv).
    """
    repeats = query.shape[1] // key.shape[1]
    key = key.repeat_interleave(repeats, 1)  # (1, Hq, T, D)
    value = value.repeat_interleave(repeats, 1)  # (1, Hq, T, Dv)
    outputs = []
    for number, span in enumerate(segments.spans):
        seen = [*segments.ancestors(number), span]
        keys = torch.cat([key[:, :, part.slice] for part in seen], 2)
        values = torch.cat([value[:, :, part.slice] for part in seen], 2)
        offset = keys.shape[2] - span.length
        mask = _mask(segments, span.length, offset, window, query.device)
        queries = query[:, :, span.slice]
        if softcap is None and sinks is None:
            out = F.scaled_dot_product_attention(
                queries, keys, values, attn_mask=mask, dropout_p=dropout, scale=scale
            )  # (1, Hq, L, Dv)
        else:
            out = _weighted(queries, keys, values, mask, scale, softcap, sinks, dropout)
        outputs.append(out)
    return torch.cat(outputs, 2).transpose(1, 2)


def _mask(segments: Segments, length: int, offset: int, window: int | None, device: torch.device) -> torch.Tensor:
    """True where query i (at position offset + i) sees key j; the same for every layer, so it is kept."""
    name = ("dense mask", length, offset, window, device)
    if name not in segments.derived:
        rows = torch.arange(offset, offset + length, device=device)[:, None]
        columns = torch.arange(offset + length, device=device)[None]
        allowed = columns <= rows
        if window is not None:
            allowed = allowed & (rows - columns < window)
        segments.derived[name] = allowed  # (L, offset + L)
    return segments.derived[name]


def _weighted(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scale: float,
    softcap: float | None,
    sinks: torch.Tensor | None,
    dropout: float,
) -> torch.Tensor:
    scores = (query @ key.transpose(2, 3)) * scale  # (1, Hq, L, K)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    wide = torch.promote_types(scores.dtype, torch.float32)
    scores = scores.to(wide).masked_fill(~mask, torch.finfo(wide).min)
    if sinks is not None:
        column = sinks.to(wide).reshape(1, -1, 1, 1).expand(1, -1, scores.shape[2], 1)
        scores = torch.cat([scores, column], -1)
    weights = scores.softmax(-1)[..., : key.shape[2]].to(value.dtype)
    return F.dropout(weights, dropout) @ value  # (1, Hq, L, Dv)
