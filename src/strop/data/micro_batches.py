"""What trees cost, and how the trees of an optimizer step are dealt out to micro-batches."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from strop.errors import ConfigError
from strop.records import Example


def tree_cost(example: Example | Sequence[Example]) -> int:
    """Tokens computed for a tree: prompt + sum of completions. For a pack (a list of trees): the sum of its trees."""
    return example.num_tokens if isinstance(example, Example) else sum(tree.num_tokens for tree in example)


def plan_micro_batches(
    examples: Sequence[Example | Sequence[Example] | int],
    *,
    max_tokens: int | None = None,
    max_trees: int | None = None,
) -> list[list[int]]:
    """Deal trees out to as few micro-batches as the limits allow, with loads as even as can be.

    Longest first, each into the least loaded micro-batch that has room; if one finds no room, there is one
    micro-batch more and the deal starts again. The result depends on the costs and their order only. By the reduction
    law it does not matter to the gradient.

    Args:
        examples: trees, packs of trees, or their costs in tokens.
        max_tokens: tokens per micro-batch, >= 1. A single tree above it gets a micro-batch of its own.
        max_trees: trees per micro-batch, >= 1.

    Returns:
        Lists of indices, each in rising order, that hold every index once; the heaviest micro-batch comes first, so
        that a peak of memory shows at once.

    Raises:
        ConfigError: a limit below 1.
    """
    for name, limit in (("max_tokens", max_tokens), ("max_trees", max_trees)):
        if limit is not None and limit < 1:
            raise ConfigError(f"{name} is {limit}; give 1 or more, or None for no limit.")
    costs = [item if isinstance(item, int) else tree_cost(item) for item in examples]
    if not costs:
        return []
    order = sorted(range(len(costs)), key=lambda index: (-costs[index], index))
    bins = 1
    if max_trees is not None:
        bins = max(bins, -(-len(costs) // max_trees))
    if max_tokens is not None:
        bins = max(bins, -(-sum(costs) // max_tokens))
    bins = min(bins, len(costs))
    while (dealt := _deal(costs, order, bins, max_tokens, max_trees)) is None:
        bins += 1
    loads = [sum(costs[index] for index in batch) for batch in dealt]
    ranking = sorted(range(len(dealt)), key=lambda b: (-loads[b], dealt[b]))
    return [dealt[b] for b in ranking]


def _deal(
    costs: list[int], order: list[int], bins: int, max_tokens: int | None, max_trees: int | None
) -> list[list[int]] | None:
    batches: list[list[int]] = [[] for _ in range(bins)]
    heap = [(0, number) for number in range(bins)]
    for index in order:
        if not heap:
            return None
        load, number = heap[0]
        # The least loaded one has the most room, so if it has none, none has.
        if max_tokens is not None and load and load + costs[index] > max_tokens:
            return None
        batches[number].append(index)
        if max_trees is not None and len(batches[number]) == max_trees:
            heapq.heappop(heap)
        else:
            heapq.heapreplace(heap, (load + costs[index], number))
    return [sorted(batch) for batch in batches if batch]
