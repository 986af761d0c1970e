"""Flat tokens and the completions they belong to: sums, positions, and the way to (B, T) and back.

A flat tensor holds the scored tokens of all completions one after another; `segment` (N,) says which completion,
0..S-1, a token belongs to. Tokens of a completion are neighbours and in order. Completions may be empty.
"""

from __future__ import annotations

import torch
from torch import Tensor


def segment_sum(values: Tensor, segment: Tensor, num_completions: int) -> Tensor:
    """Sum of `values` (N, ...) over each completion, (S, ...); 0 for a completion without tokens."""
    return values.new_zeros((num_completions, *values.shape[1:])).index_add(0, segment, values)


def segment_lengths(segment: Tensor, num_completions: int) -> Tensor:
    """Scored tokens of each completion, (S,) int64."""
    return segment.new_zeros(num_completions).index_add(0, segment, torch.ones_like(segment))


def segment_mean(values: Tensor, segment: Tensor, num_completions: int) -> Tensor:
    """Mean of `values` (N, ...) over each completion, (S, ...); 0 for a completion without tokens."""
    lengths = segment_lengths(segment, num_completions).clamp(min=1)  # (S,)
    total = segment_sum(values, segment, num_completions)
    return total / lengths.to(values.dtype).reshape(-1, *[1] * (values.dim() - 1))


def segment_positions(segment: Tensor, num_completions: int) -> Tensor:
    """Place of each token among the scored tokens of its completion, (N,) int64 from 0."""
    lengths = segment_lengths(segment, num_completions)
    starts = lengths.cumsum(0) - lengths  # (S,)
    return torch.arange(segment.shape[0], device=segment.device) - starts[segment]


def segment_last(segment: Tensor, num_completions: int) -> Tensor:
    """Whether a token is the last scored one of its completion, (N,) bool."""
    return segment_positions(segment, num_completions) == segment_lengths(segment, num_completions)[segment] - 1


def to_rows(values: Tensor, segment: Tensor, num_completions: int, fill: float = 0.0) -> Tensor:
    """Flat (N,) -> one row per completion, left-aligned, (S, longest)."""
    longest = int(segment_lengths(segment, num_completions).max()) if segment.numel() else 0
    rows = values.new_full((num_completions, longest), fill)  # (S, longest)
    return rows.index_put((segment, segment_positions(segment, num_completions)), values)


def from_rows(rows: Tensor, segment: Tensor) -> Tensor:
    """The flat tokens (N,) of left-aligned rows (S, longest), inverse of `to_rows`."""
    return rows[segment, segment_positions(segment, rows.shape[0])]


def reverse_cumsum(values: Tensor, segment: Tensor) -> Tensor:
    """Sum of the values from each token to the end of its completion, itself included, (N,).

    Sums of 2, 4, 8 ... neighbours, so that the order of additions is fixed on every device and no length is asked for.
    """
    reach = 1
    while reach < len(values):
        same = segment[reach:] == segment[:-reach]
        further = torch.where(same, values[reach:], torch.zeros_like(values[reach:]))
        values = torch.cat([values[:-reach] + further, values[-reach:]])
        reach *= 2
    return values


def flatten(mask: Tensor) -> tuple[Tensor, Tensor]:
    """`keep` (B, T) bool and `segment` (N,) of a 0/1 mask (B, T); `x[keep]` is then flat."""
    keep = mask.bool()
    return keep, keep.nonzero()[:, 0]


def unflatten(values: Tensor, keep: Tensor) -> Tensor:
    """Flat (N,) back to (B, T), 0 where `keep` is False."""
    return values.new_zeros(keep.shape).masked_scatter(keep, values)
