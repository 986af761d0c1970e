"""Which prompt tokens of a call are computed once: what prompts begin with alike, and what earlier turns have left.

A prompt is computed in parts, one below the other. Prompts are a forest by the rule that training shares rows by
(`strop.model.forest`); a prompt that goes on from a conversation of the call before starts where that one ended. The
last token of a prompt is always computed, since the first new token is drawn from it.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Container, Sequence
from dataclasses import dataclass

import torch

from strop.data.encode import common_prefix
from strop.model.forest import Rule, forest, in_order

Layers = dict[int, tuple[torch.Tensor, torch.Tensor]]
"""By id of the attention module: keys (1, Hk, T, D) and values (1, Hk, T, Dv)."""


@dataclass(slots=True)
class Part:
    """Tokens that are computed together, behind those of the part above."""

    key: int  # number of the prompt that ends with it; below 0: a beginning
    ids: list[int]
    start: int = 0  # position of the first
    above: int | None = None  # key of what stands before it


class Beginnings:
    """The parts of distinct prompts.

    Args:
        prompts: token ids, at least one each.
        rule: (tokens saved, tokens below) -> whether a beginning is computed once; None: none is.
        kept: conversations that prompts may go on from.
    """

    def __init__(self, prompts: Sequence[list[int]], rule: Rule | None, kept: Kept | None = None) -> None:
        self.parts: dict[int, Part] = {}
        self.last: dict[int, int] = {}  # key -> the last prompt that it is part of
        self.given: dict[int, Layers] = {}  # key -> what is there before anything is computed
        if kept is not None and rule is not None:
            self._go_on(prompts, rule, kept)
        rest = [number for number in range(len(prompts)) if number not in self.parts]
        # A name of its own in the place of the last token, so that no prompt is a beginning of another.
        names = [[*prompts[number][:-1], ~number] for number in rest]
        nodes, parents = in_order(forest(names, [], rule or _never)[0])
        first = len(self.given)
        keys = [~(first + place) if node.children else rest[node.row] for place, node in enumerate(nodes)]
        for key, node, parent in zip(keys, nodes, parents, strict=True):
            ids = prompts[rest[node.row]][node.start : node.stop]
            self.parts[key] = Part(key, ids, node.start, keys[parent] if parent >= 0 else None)
        for key, parent in reversed(list(zip(keys, parents, strict=True))):
            self.last.setdefault(key, key)
            if parent >= 0:
                self.last[keys[parent]] = max(self.last.get(keys[parent], 0), self.last[key])

    def _go_on(self, prompts: Sequence[list[int]], rule: Rule, kept: Kept) -> None:
        found = kept.take([prompt[:-1] for prompt in prompts], rule)
        for number, (length, layers) in found.items():
            key = ~len(self.given)
            self.given[key] = {name: (k[:, :, :length], v[:, :, :length]) for name, (k, v) in layers.items()}
            self.parts[number] = Part(number, prompts[number][length:], length, key)
            self.last[key] = self.last[number] = number

    def missing(self, prompt: int, computed: Container[int]) -> list[Part]:
        """The parts of a prompt that are not `computed`, in the order in which they have to be."""
        found: list[Part] = []
        key: int | None = prompt
        while key is not None and key not in computed:
            found.append(self.parts[key])
            key = self.parts[key].above
        return found[::-1]


class Kept:
    """Keys of rows that are written, for prompts of later calls that go on from them.

    Args:
        most_tokens: how many are kept; the oldest rows make room for new ones, and are computed again where needed.
    """

    def __init__(self, most_tokens: int) -> None:
        self.most_tokens = most_tokens
        self.rows: list[tuple[list[int], Layers]] = []  # ids, and the keys of all of them; the oldest first

    def add(self, ids: list[int], layers: Layers) -> None:
        """Keep the keys of all tokens of a row."""
        self.rows.append((ids, layers))
        tokens = sum(len(row) for row, _ in self.rows)
        while tokens > self.most_tokens:
            tokens -= len(self.rows.pop(0)[0])

    def take(self, prompts: Sequence[list[int]], rule: Rule) -> dict[int, tuple[int, Layers]]:
        """The prompts that go on from a row: how many tokens of it, and its keys; rows that serve are given away."""
        order = sorted(range(len(self.rows)), key=lambda place: self.rows[place][0])
        found: dict[int, tuple[int, Layers]] = {}
        used = set()
        for number, prompt in enumerate(prompts):
            place = bisect(order, prompt, key=lambda place: self.rows[place][0])
            near = [(common_prefix(prompt, self.rows[row][0]), row) for row in order[max(0, place - 1) : place + 1]]
            length, row = max(near, default=(0, -1))
            if rule(length, len(prompt) + 1 - length) and length:
                found[number] = length, self.rows[row][1]
                used.add(row)
        self.rows = [row for place, row in enumerate(self.rows) if place not in used]
        return found


def _never(saved: int, below: int) -> bool:
    return False
