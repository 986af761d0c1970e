"""KTO's mismatched completions: which other row's completion a prompt is paired with, fixed once for the data set.

The KL term of KTO needs log-ratios of completions that do not belong to their prompt. Row i is given the completion of
the first row after it, in the order of the set and around its end, that has another prompt and another completion.
So every tree brings its own partner, and the estimate depends on neither batch size, order, nor number of processes.
In a stream the partner is one of the trees that follow.

Differs from TRL, which rotates completions inside blocks of one device's batch and must then train in that order.
Source: arXiv 2402.01306, section 4.1; rule R12 (ids are joined, never tokenised again).
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from strop.data.checks import number_of
from strop.data.dataset import ExampleDataset, ExampleStream, TreeSet
from strop.data.kinds import DatasetKind
from strop.data.options import TokenizeOptions
from strop.errors import ConfigError
from strop.records import Example, Extras

AHEAD = 64
"""Trees of a stream among which a mismatched completion is looked for; the last tree of a stream has none."""
HOPS = 1000
"""Runs of like rows that are skipped before a row counts as having no partner."""


class MismatchedDataset(TreeSet):
    """The trees of a labelled set, each with a second completion that belongs to another prompt.

    `completions` is `[own, mismatched]`, or `[own]` where no row is mismatched; `extras["partner"]` is the index of the
    tree that the second one comes from, or None.
    """

    def __init__(self, dataset: ExampleDataset) -> None:
        _need_labels(dataset.kind)
        self.dataset = dataset
        self.report, self.options, self.kind = dataset.report, dataset.options, dataset.kind
        self.prompts, self.completions = array("Q"), array("Q")
        for index in range(len(dataset)):
            case = dataset.case(index)
            self.prompts.append(number_of(case.prompt))
            self.completions.append(number_of(case.completions))
        self.partners = find_partners(self.prompts, self.completions)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        self.dataset.__getitems__(indices)  # tokenises together what is not known yet
        own = [self.dataset.resolve(index) for index in indices]
        partners = [self._partner(index) for index in own]
        wanted = list(dict.fromkeys([*own, *(partner for partner in partners if partner >= 0)]))
        found = dict(zip(wanted, self.dataset.__getitems__(wanted), strict=True))
        limit = longest(self.options)
        return [
            join_partner(found[index], found.get(partner), partner if partner >= 0 else None, limit)
            for index, partner in zip(own, partners, strict=True)
        ]

    def _partner(self, index: int) -> int:
        """The partner of a tree, -1 for none; one that another tree stands in for must still be of another row."""
        partner = self.partners[index]
        if partner < 0:
            return -1
        given = self.dataset.resolve(partner)
        alike = self.prompts[given] == self.prompts[index] or self.completions[given] == self.completions[index]
        return -1 if alike else given


class MismatchedStream:
    """The trees of a labelled stream, each with a completion of one of the next `AHEAD` trees that differs in both."""

    def __init__(self, stream: ExampleStream) -> None:
        _need_labels(stream.kind)
        self.stream, self.report, self.options, self.kind = stream, stream.report, stream.options, stream.kind

    def __iter__(self) -> Iterator[Example]:
        waiting: deque[Example] = deque()
        for example in self.stream:
            waiting.append(example)
            if len(waiting) > AHEAD:
                yield self._paired(waiting.popleft(), waiting)
        while waiting:
            yield self._paired(waiting.popleft(), waiting)

    def _paired(self, own: Example, after: Iterable[Example]) -> Example:
        differing = (e for e in after if e.prompt_ids != own.prompt_ids and e.completions != own.completions)
        other = next(differing, None)
        return join_partner(own, other, None if other is None else other.row, longest(self.options))


def mismatched(dataset: ExampleDataset | ExampleStream) -> MismatchedDataset | MismatchedStream:
    """Give every tree of a labelled set a completion of another prompt, for KTO's KL term (see this module)."""
    return MismatchedStream(dataset) if isinstance(dataset, ExampleStream) else MismatchedDataset(dataset)


def join_partner(own: Example, other: Example | None, partner: int | None, max_length: int | None) -> Example:
    """A tree with the completion of another one beside its own, cut to the room that its prompt leaves."""
    extras: Extras = {**own.extras, "partner": partner}
    if other is None:
        return replace(own, extras=extras)
    size = len(other.completions[0]) if max_length is None else max(max_length - len(own.prompt_ids), 1)
    ids, mask = other.completions[0][:size], other.mask(0)[:size]
    masks = None if all(mask) and own.loss_mask is None else [own.mask(0), mask]
    return replace(own, completions=[own.completions[0], ids], loss_mask=masks, extras=extras)


def longest(options: TokenizeOptions) -> int | None:
    """Tokens that a prompt and the completion of another row may have together, None without a limit."""
    limits = [limit for limit in (options.max_length, options.learned_positions) if limit is not None]
    return min(limits, default=None)


def _need_labels(kind: DatasetKind) -> None:
    if kind is not DatasetKind.UNPAIRED_PREFERENCE:
        raise ConfigError(f"Mismatched completions are for unpaired_preference data; these are {kind}.")


def find_partners(prompts: Sequence[int], completions: Sequence[int]) -> array[int]:
    """For each row the first row after it, cyclically, with another prompt and another completion; -1 if there is none.

    Runs of equal prompts (or completions) are skipped in one hop, so pairs split into labelled rows cost two looks.
    """
    size = len(prompts)
    next_prompt, next_completion = _run_ends(prompts), _run_ends(completions)
    partners = array("q", [-1]) * size
    for row in range(size):
        other = (row + 1) % size
        walked = 1
        for _ in range(HOPS):
            if walked >= size:
                break
            if prompts[other] == prompts[row]:
                hop = next_prompt[other]
            elif completions[other] == completions[row]:
                hop = next_completion[other]
            else:
                partners[row] = other
                break
            walked += hop
            other = (other + hop) % size
    return partners


def _run_ends(values: Sequence[int]) -> array[int]:
    """For each position, how many steps ahead the first different value stands, cyclically (at most one round)."""
    size = len(values)
    ends = array("q", [size]) * size
    for position in range(2 * size - 2, -1, -1):
        here, after = position % size, (position + 1) % size
        ends[here] = 1 if values[here] != values[after] else min(ends[after] + 1, size)
    return ends
