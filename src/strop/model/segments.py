"""The geometry of a flat row: which stretch of tokens may look at which.

A flat row is a forest laid out. Every token is in one segment; a segment sees itself causally, and all of its
ancestors in full. The order of the segments is

    roots with children    one after the other
    roots without          whole rows that share nothing: one attention call, no merge
    all others             depth first, below their roots in the roots' order

so that the descendants of a segment are neighbours: one call takes them all to their ancestor.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens `start .. start + length - 1` of the flat row."""

    start: int
    length: int

    @property
    def end(self) -> int:
        return self.start + self.length

    @property
    def slice(self) -> slice:
        return slice(self.start, self.start + self.length)


class Segments:
    """The segments of one flat row, and a place for what kernels derive from them (masks, cumulative lengths).

    A plain class on purpose: wrappers such as FSDP rebuild the dataclasses they find among a module's arguments.
    """

    def __init__(self, spans: list[Span], parents: list[int]) -> None:
        self.spans = spans  # in the order above; together they cover the row
        self.parents = parents  # number of each segment's parent, -1 for roots
        self.rows: list[list[Span]] = []  # the tokens of each completion's own row, prompt first, in order
        self.derived: dict[Any, Any] = {}

    @property
    def total(self) -> int:
        """Tokens of the flat row."""
        return self.spans[-1].end

    @cached_property
    def crossings(self) -> list[tuple[Span, Span]]:
        """(all descendants, segment) for every segment that has some, in flat order."""
        below: dict[int, Span] = {}
        for number in range(len(self.spans) - 1, -1, -1):
            parent, span = self.parents[number], self.spans[number]
            if parent >= 0:  # walked from the end, so the first one met ends the stretch
                end = max(below.get(number, span).end, below.get(parent, span).end)
                below[parent] = Span(span.start, end - span.start)
        return [(below[number], self.spans[number]) for number in sorted(below)]

    def ancestors(self, number: int) -> list[Span]:
        """The segments above one, its root first."""
        found: list[Span] = []
        while (number := self.parents[number]) >= 0:
            found.append(self.spans[number])
        return found[::-1]

    @cached_property
    def depths(self) -> list[int]:
        """How many ancestors each segment has."""
        found: list[int] = []
        for parent in self.parents:  # which stands before its children
            found.append(found[parent] + 1 if parent >= 0 else 0)
        return found

    @property
    def deep(self) -> bool:
        """Whether a segment has more than one ancestor."""
        return max(self.depths, default=0) > 1

    @cached_property
    def longest_context(self) -> int:
        """Tokens of the longest way from a root to a leaf: what a sliding window has to cover."""
        lengths: list[int] = []
        for span, parent in zip(self.spans, self.parents, strict=True):  # a parent stands before its children
            lengths.append(span.length + (lengths[parent] if parent >= 0 else 0))
        return max(lengths, default=0)
