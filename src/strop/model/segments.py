"""The geometry of a flat row: which stretch of tokens may look at which.

A flat row holds, one after the other,

    prompts    the prompts of trees with two or more completions; causal, on their own
    roots      whole sequences (prompt and completion together) of trees with one completion; causal, on their own
    branches   the completions of the first kind of trees, tree by tree; each sees its prompt, and itself causally

Trees with one completion have nothing to share, so they are stored as one stretch: one attention call, no merge.
"""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Group:
    """One prompt and the branches that hang on it; the branches are neighbours in the flat row."""

    prompt: Span
    branches: tuple[Span, ...]

    @property
    def all_branches(self) -> Span:
        start = self.branches[0].start
        return Span(start, self.branches[-1].end - start)


class Segments:
    """Attention segments of one flat row, and a place for what kernels derive from them (masks, cumulative lengths).

    A plain class on purpose: wrappers such as FSDP rebuild the dataclasses they find among a module's arguments.
    """

    def __init__(
        self, groups: list[Group], roots: list[Span], total: int, copies: list[tuple[Span, int]] | None = None
    ) -> None:
        self.groups = groups
        self.roots = roots
        self.total = total  # tokens of the flat row
        self.copies = copies or []  # prompts, and how many completions each of them serves
        self.derived: dict[Any, Any] = {}

    @property
    def causal_spans(self) -> list[Span]:
        """Every stretch that is causal on its own, in flat order; together they cover the row."""
        prompts = [group.prompt for group in self.groups]
        return [*prompts, *self.roots, *(branch for group in self.groups for branch in group.branches)]

    @property
    def longest_context(self) -> int:
        """Tokens of the longest sequence, prompt included: what a sliding window has to cover."""
        lengths = [root.length for root in self.roots]
        lengths += [group.prompt.length + branch.length for group in self.groups for branch in group.branches]
        return max(lengths, default=0)
