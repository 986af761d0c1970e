"""Trees with more completions than a micro-batch may hold, cut into trees with fewer completions of the same prompt.

Losses that add up tokens or completions do not notice: each piece knows the step's denominators, not its own. Only the
prompt is computed once more for every further piece.
"""

from __future__ import annotations

from dataclasses import replace

from strop.records import Example


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
    return [_part(tree, slice(start, end)) for start, end in zip(starts, ends, strict=True)]


def _part(tree: Example, some: slice) -> Example:
    masks = None if tree.loss_mask is None else tree.loss_mask[some]
    known = None if tree.sampled is None else tree.sampled.part(some)
    return replace(tree, completions=tree.completions[some], loss_mask=masks, sampled=known)
