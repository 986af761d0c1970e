"""Which tokens of several rows are computed once: the forest of their common beginnings.

Rows that begin alike share the segment in which they do. Its tokens are computed once, and everything below pays for
it: one more attention call, and one more pass over queries and outputs to merge what it gives. So a segment is shared
if it `pays`; else each of its children computes a copy of its own. The prompt of a tree is always shared by the
completions of that tree.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from strop.data.encode import common_prefix

CALL, MERGE = 16, 32
"""A call costs about as much as computing 16 tokens, merging about a 32nd part of a token for each token below."""

Rule = Callable[[int, int], bool]
"""(tokens saved, tokens below) -> whether a segment is shared."""


def pays(saved: int, below: int) -> bool:
    """saved > 16 + below / 32: computing the tokens again costs more than the call and the merging.

    Args:
        saved: tokens of the segment, once for every child but the first.
        below: tokens that would be merged with it.
    """
    return saved > CALL + below / MERGE


def always(saved: int, below: int) -> bool:
    """Whatever rows have in common is shared: for checks, on rows too short to pay."""
    return True


@dataclass(slots=True)
class Node:
    """Tokens `start .. stop - 1` of a row, and what goes on from there."""

    row: int
    start: int
    stop: int
    first: int  # place of its first row in sorted order
    children: list[Node] = field(default_factory=list)
    below: int = 0  # tokens of all descendants

    @property
    def size(self) -> int:
        return self.stop - self.start + self.below


def forest(rows: Sequence[list[int]], together: Sequence[Sequence[int]], rule: Rule) -> tuple[list[Node], list[int]]:
    """The roots of the forest, and for every row the row that it lies on: itself, or one that goes on from it.

    Args:
        rows: token ids, at least one each.
        together: rows that share the segment before they part, whatever the rule says.
        rule: (tokens saved, tokens below) -> whether another segment is shared.
    """
    order = sorted(range(len(rows)), key=rows.__getitem__)
    alike = [common_prefix(rows[a], rows[b]) for a, b in itertools.pairwise(order)]
    lies_on = list(range(len(rows)))
    for place in range(len(order) - 2, -1, -1):
        if alike[place] == len(rows[order[place]]):
            lies_on[order[place]] = lies_on[order[place + 1]]
    leaves = [place for place, row in enumerate(order) if lies_on[row] == row]
    depths = [min(alike[a:b]) for a, b in itertools.pairwise(leaves)]
    number = {order[place]: leaf for leaf, place in enumerate(leaves)}
    kept = set()
    for group in together:
        met = sorted({number[lies_on[row]] for row in group})
        if len(met) > 1:
            kept.add((met[0], min(depths[met[0] : met[-1]])))
    rows_of = [order[place] for place in leaves]
    return _grown(rows_of, [len(rows[row]) for row in rows_of], depths, kept, rule), lies_on


def in_order(roots: Sequence[Node]) -> tuple[list[Node], list[int]]:
    """All nodes in the order of `segments`, and the number of each one's parent (-1 for roots)."""
    nodes = sorted(roots, key=lambda node: not node.children)
    parents = [-1] * len(nodes)
    waiting = [(child, number) for number, root in enumerate(nodes) for child in root.children][::-1]
    while waiting:
        node, parent = waiting.pop()
        waiting += [(child, len(nodes)) for child in reversed(node.children)]
        nodes.append(node)
        parents.append(parent)
    return nodes, parents


def _grown(
    leaves: list[int], lengths: list[int], depths: list[int], kept: set[tuple[int, int]], rule: Rule
) -> list[Node]:
    """The roots over sorted leaves; `depths[i]` is what leaves i and i + 1 have in common, (leaf, depth) in `kept`
    names a leaf below a node that stays, and where that node stops.

    The nodes above the latest leaf are open, the deepest last; a node is closed, and judged, when its parent is known.
    """
    root = Node(-1, 0, 0, 0)
    open_nodes = [root]
    for place, (row, length) in enumerate(zip(leaves, lengths, strict=True)):
        depth = depths[place - 1] if place else 0
        while open_nodes[-1].stop > depth:
            done = open_nodes.pop()
            if open_nodes[-1].stop < depth:
                open_nodes.append(Node(done.row, 0, depth, done.first))
            _close(done, open_nodes[-1], place, kept, rule)
        open_nodes.append(Node(row, 0, length, place))
    while len(open_nodes) > 1:
        _close(open_nodes.pop(), open_nodes[-1], len(leaves), kept, rule)
    return sorted(root.children, key=lambda node: node.row)


def _close(node: Node, parent: Node, end: int, kept: set[tuple[int, int]], rule: Rule) -> None:
    """Hang a node whose leaves are `first .. end - 1` on its parent, or its children where it is not shared."""
    node.start = parent.stop
    node.children.sort(key=lambda child: child.row)
    stays = not node.children or any((leaf, node.stop) in kept for leaf in range(node.first, end))
    if stays or rule((len(node.children) - 1) * (node.stop - node.start), node.below):
        hung = [node]
    else:
        hung = node.children
        for child in hung:
            child.start = node.start
    parent.children += hung
    parent.below += sum(child.size for child in hung)
    parent.row = min(parent.row, *(child.row for child in hung))
