"""Trees with more completions than a micro-batch may hold, cut into trees with fewer completions of the same prompt.

Losses that add up tokens or completions do not notice: each piece knows the step's denominators, not its own. Only the
prompt is computed once more for every further piece.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from strop.device import sent
from strop.records import Batch, Example


def pieces(tree: Example, *, max_completions: int | None = None, max_tokens: int | None = None) -> list[Example]:
    """A tree as pieces of at most so many completions, or of so many tokens (prompt included), one completion at least.

    What is known about each completion, or each of its tokens, goes with it. Pieces after the first say so
    (`sampled.continues`).
    """
    starts = [0]
    tokens = len(tree.prompt_ids)
    for index, completion in enumerate(tree.completions):
        full = max_completions is not None and index - starts[-1] >= max_completions
        heavy = max_tokens is not None and tokens + len(completion) > max_tokens
        if index > starts[-1] and (full or heavy):
            starts.append(index)
            tokens = len(tree.prompt_ids)
        tokens += len(completion)
    if len(starts) == 1:
        return [tree]
    ends = [*starts[1:], len(tree.completions)]
    return [part_of(tree, slice(start, end)) for start, end in zip(starts, ends, strict=True)]


def part_of(tree: Example, some: slice) -> Example:
    """A tree with some of its completions, and what is known about them."""
    masks = None if tree.loss_mask is None else tree.loss_mask[some]
    known = None if tree.sampled is None else tree.sampled.part(some)
    return replace(tree, completions=tree.completions[some], loss_mask=masks, sampled=known)


def in_trajectories(trees: Sequence[Example]) -> list[list[Example]]:
    """Trees by what must stay in one micro-batch: the stretches of one trajectory, every other tree by itself."""
    units: dict[object, list[Example]] = {}
    for tree in trees:
        number = None if tree.sampled is None else tree.sampled.trajectory
        units.setdefault(("tree", id(tree)) if number is None else number, []).append(tree)
    return list(units.values())


def trajectory_of(batch: Batch, device: torch.device | str | None = None) -> tuple[torch.Tensor, int]:
    """Number of the trajectory of each scored token (N,), and how many trajectories there are; on the batch's device,
    or on another.

    A completion is a trajectory; so are all stretches of a conversation that a chat template rewrote on the way.
    """
    numbers, count = _numbers(batch)
    if count == batch.num_completions and device is None:
        return batch.segment, count
    each = [number for number, size in zip(numbers, batch.sizes, strict=True) for _ in range(size)]
    return sent(torch.tensor(each, dtype=torch.long), batch.segment.device if device is None else device), count


def one_each(values: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Of values that all completions of a trajectory share, (S,): one for each trajectory, (trajectories,)."""
    numbers, count = _numbers(batch)
    if count == batch.num_completions:
        return values
    return values.index_select(0, sent([numbers.index(number) for number in range(count)], values.device))


def _numbers(batch: Batch) -> tuple[list[int], int]:
    """The number of each completion's trajectory, and how many there are."""
    known: dict[object, int] = {}
    found = []
    for tree in batch.examples:
        own = None if tree.sampled is None else tree.sampled.trajectory
        for index in range(len(tree.completions)):
            found.append(known.setdefault((id(tree), index) if own is None else own, len(known)))
    return found, len(known)
