"""Packing: several trees per item, so that items are of nearly equal size.

No attention crosses from one tree to another in this engine, so a pack gives each tree the very log-probabilities it
has alone (rule R14); packing any kind of tree is exact. Only `wrapped` and `bfd_split` cut trees.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from strop.data.dataset import ExampleStream, TreeSet
from strop.data.micro_batches import tree_cost
from strop.errors import ConfigError, DataError, did_you_mean
from strop.records import Example

STRATEGIES = ("bfd", "bfd_split", "wrapped")
STREAM_WINDOW = 1024
"""Trees of a stream that are packed together."""


def pack(
    examples: Sequence[Example] | ExampleStream, max_length: int, strategy: str = "bfd"
) -> PackedDataset | PackedStream:
    """Group trees into packs of at most `max_length` tokens.

    * `bfd`, best-fit decreasing: the longest tree first, each into the fullest pack that has room. Nothing is cut.
    * `bfd_split`: trees longer than a pack are cut into pieces first.
    * `wrapped`: trees one after the other in their order, cut wherever a pack is full.

    A piece that continues a cut tree keeps one token of context, so that every scored token is scored exactly once;
    that token counts towards the pack. All lengths must be known, so a lazily tokenised set is tokenised here; a
    stream is packed in windows of 1,024 trees.

    Args:
        examples: trees, best of a `prepare` with the same max_length.
        max_length: tokens per pack, >= 2.
        strategy: `bfd`, `bfd_split` or `wrapped`.

    Returns:
        `PackedDataset` (items are `list[Example]`), or `PackedStream`.

    Raises:
        DataError: `bfd` with trees that do not fit.
        ConfigError: an unknown strategy, or cutting trees that have several completions.
    """
    if strategy not in STRATEGIES:
        raise ConfigError(
            f"packing_strategy is {strategy!r}; choose one of {', '.join(map(repr, STRATEGIES))}."
            + did_you_mean(strategy, STRATEGIES)
        )
    if max_length < 2:
        raise ConfigError(f"Packs need a max_length of 2 or more; got {max_length}.")
    if isinstance(examples, ExampleStream):
        return PackedStream(examples, max_length, strategy)
    return PackedDataset(examples, max_length, strategy)


class Pack(list[Example]):
    """The pieces of a pack; a column of theirs by its name, one after the other; `seq_lengths`: tokens of each."""

    def __getitem__(self, index: Any) -> Any:
        if index == "seq_lengths":
            return [example.num_tokens for example in self]
        if isinstance(index, str):
            return [entry for example in self for entry in example[index]]
        return super().__getitem__(index)


class PackedDataset(TreeSet):
    """Packs of trees. `lengths` are tokens per pack; `pieces` says which part of which tree is where."""

    def __init__(self, examples: Sequence[Example], max_length: int, strategy: str) -> None:
        self.examples, self.max_length, self.report = examples, max_length, getattr(examples, "report", None)
        costs = array("i", (0,)) * len(examples)
        # Cuts need to know where the first scored token is; sizes alone are enough for whole trees.
        pieces: list[tuple[int, int, int, int]] = []
        for index, example in enumerate(examples):
            costs[index] = tree_cost(example)
            if strategy == "bfd_split" and costs[index] > max_length:
                pieces += [(index, *piece) for piece in cut_tree(example, max_length, max_length)]
            elif strategy != "wrapped":
                pieces.append((index, 0, costs[index], costs[index]))
        if strategy == "wrapped":
            self.packs = _wrap(examples, max_length)
        else:
            if strategy == "bfd":
                _refuse_long(examples, costs, max_length)
            sizes = [size for *_, size in pieces]
            self.packs = [[pieces[p] for p in pack] for pack in sorted(map(sorted, best_fit(sizes, max_length)))]
        self.lengths = [sum(size for *_, size in pack) for pack in self.packs]

    def __len__(self) -> int:
        return len(self.packs)

    def __getitems__(self, indices: Sequence[int]) -> list[Pack]:
        packs = (self.packs[index] for index in indices)
        return [Pack(take_piece(self.examples[tree], start, stop) for tree, start, stop, _ in pack) for pack in packs]

    @property
    def column_names(self) -> list[str]:
        """The columns under which all packs can be looked at: `packs["input_ids"]`."""
        return ["input_ids", "labels", "seq_lengths"]


class PackedStream:
    """Packs of a stream of trees, window by window."""

    def __init__(self, stream: ExampleStream, max_length: int, strategy: str) -> None:
        self.stream, self.max_length, self.strategy, self.report = stream, max_length, strategy, stream.report

    def __iter__(self) -> Iterator[list[Example]]:
        trees = iter(self.stream)
        while window := list(islice(trees, STREAM_WINDOW)):
            yield from PackedDataset(window, self.max_length, self.strategy)


def _refuse_long(examples: Sequence[Example], costs: Sequence[int], max_length: int) -> None:
    long = [index for index, cost in enumerate(costs) if cost > max_length]
    if long:
        problems = [f"row {examples[index].row}: {costs[index]} tokens" for index in long]
        title = (
            f"{len(long)} trees are longer than a pack of {max_length}; prepare them with max_length, or use bfd_split."
        )
        raise DataError.collect(title, problems)


def best_fit(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of `sizes` in bins of `capacity`, as they come in: the longest first, each into the fullest with room.

    Bins are kept by the room they have left; a set bit k of `rooms` says that some bin has room k, so the fullest
    fitting bin is the lowest set bit from the size on.
    """
    by_room: dict[int, list[int]] = {}
    rooms = 0
    bins: list[list[int]] = []
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        size = sizes[index]
        fitting = rooms >> size
        if fitting:
            room = size + (fitting & -fitting).bit_length() - 1
            number = by_room[room].pop()
            if not by_room[room]:
                rooms &= ~(1 << room)
        else:
            number, room = len(bins), capacity
            bins.append([])
        bins[number].append(index)
        left = room - size
        by_room.setdefault(left, []).append(number)
        rooms |= 1 << left
    return bins


def cut_tree(example: Example, first_room: int, room: int) -> list[tuple[int, int, int]]:
    """The pieces of a tree with one completion: (start, stop, tokens), the first of at most `first_room` tokens.

    Positions count the prompt and the completion as one list. A piece after the first starts at the last token of the
    piece before it, as context. Pieces without a scored token are left away.
    """
    if len(example.completions) != 1 or example.score_prompt:
        raise ConfigError(
            "Only trees with one completion can be cut for packing; use packing_strategy='bfd' for pairs and groups."
        )
    total = example.num_tokens
    scored = [0] * len(example.prompt_ids) + example.mask(0)
    scored[0] = 0
    pieces = []
    start, space = 0, first_room
    while start < total - (1 if start else 0):
        stop = min(start + space, total)
        if any(scored[start + 1 : stop]):
            pieces.append((start, stop, stop - start))
        if stop == total:
            break
        start, space = stop - 1, room
    return pieces


def take_piece(example: Example, start: int, stop: int) -> Example:
    """A piece of a tree as a tree of its own; the whole tree if the piece is the whole."""
    if start == 0 and stop == example.num_tokens:
        return example
    ids = (example.prompt_ids + example.completions[0])[start:stop]
    mask = ([0] * len(example.prompt_ids) + example.mask(0))[start:stop]
    if start:
        mask[0] = 0  # scored at the end of the piece before
    first = mask.index(1)
    scored = mask[first:]
    loss_mask = None if all(scored) else [scored]
    return Example(ids[:first], [ids[first:]], loss_mask, False, example.extras, example.row)


def _wrap(examples: Sequence[Example], max_length: int) -> list[list[tuple[int, int, int, int]]]:
    packs: list[list[tuple[int, int, int, int]]] = [[]]
    room = max_length
    for index, example in enumerate(examples):
        if room < 2:
            packs.append([])
            room = max_length
        for start, stop, size in cut_tree(example, room, max_length):
            if size > room:
                packs.append([])
                room = max_length
            packs[-1].append((index, start, stop, size))
            room -= size
    return [pack for pack in packs if pack]
