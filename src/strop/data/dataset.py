"""Examples on demand: a set that can be indexed, and a stream.

**When rows are tokenised.** A set of at most `eager_rows` trees is tokenised in one go by `prepare`; trees that turn
out too long are then left out, and all lengths are known. A larger set is tokenised when a tree is asked for, so that
the first step does not wait for the whole set. Its length must not change while it is in use (a resumed run counts on
it), so a tree that turns out unusable is replaced by the next usable one after it, always the same one; the report
counts and names it. Which of the two happens depends on the number of rows only, never on the cache.
"""

from __future__ import annotations

import weakref
from abc import abstractmethod
from array import array
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

from strop.data.cases import Case, read_cases
from strop.data.checks import Checked, checked_cases
from strop.data.findings import REASONS, Problems, RowProblem
from strop.data.report import DataReport, sample_of
from strop.data.rows import Rows, RowStream
from strop.data.store import TreeStore
from strop.data.trees import TreeBuilder
from strop.data.truncate import Tokenized
from strop.errors import DataError
from strop.records import Example

BLOCK = 256
"""Trees that are built side by side when many are needed."""
STREAM_BLOCK = 32
"""Trees of a stream that are built side by side: enough to fill a tokenizer call, few enough to start at once."""
BROKEN = ("unrenderable", "boundary", "positions")
"""Reasons that make a row an error when it is found before training starts."""
REFUSED = ("boundary", "positions")
"""Reasons that make a row an error whenever it is found."""


class Trees(list[Example]):
    """Trees cut out of a set; a column of theirs by its name."""

    def __getitem__(self, index: Any) -> Any:
        return [tree[index] for tree in self] if isinstance(index, str) else super().__getitem__(index)


class TreeSet(Sequence[Any]):
    """Trees, or packs of them, of which several are asked for at once; one, a slice, a named column follow from it."""

    @abstractmethod
    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Several at once: trees that are not known yet are tokenised together."""

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        if isinstance(index, str):
            return [tree[index] for tree in self]
        if isinstance(index, slice):
            return Trees(self.__getitems__(range(*index.indices(len(self)))))
        if not -len(self) <= index < len(self):
            raise IndexError(f"tree {index} of {len(self)}")
        return self.__getitems__([index % len(self)])[0]

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, len(self), BLOCK):
            yield from self.__getitems__(range(start, min(start + BLOCK, len(self))))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(columns={self.column_names}, rows={len(self)})"

    @property
    def column_names(self) -> list[str]:
        """The columns under which a prepared row can be looked at: `dataset[0]["input_ids"]`."""
        return self[0].keys()


class ExampleDataset(TreeSet):
    """A map-style set of `Example` trees; rows are read and tokenised as needed and remembered.

    `report` is the account of the data (it grows while rows are tokenised), `rows` the rows behind it.
    """

    def __init__(self, rows: Rows, checked: Checked, builder: TreeBuilder, store: TreeStore, eager: bool) -> None:
        report = checked.report
        self.rows, self.builder, self.store, self.report = rows, builder, store, report
        self.kind, self.options = builder.kind, builder.options
        self.numbers, self.parts = checked.numbers, checked.parts
        self.seen = bytearray(len(self.numbers))  # 0: not tokenised yet, 1: usable, 2: left out
        self.order = array("q", range(len(self.numbers)))
        self.eager = eager
        report.stand_ins, report.to_tokenize = not eager, len(self.numbers)
        if eager:
            self._tokenize_all()
        elif not store.has(0):  # what the template renders is in the cache already
            try_template(checked, rows, builder)
        report.sample = sample_of(self[0], builder.encoder.tokenizer)
        weakref.finalize(self, store.flush)

    def __len__(self) -> int:
        return len(self.order)

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        positions = [self.order[index] for index in indices]
        trees = self._trees(positions)
        return [
            self._example(position, tree) if tree.left_out is None else self[self.resolve(index)]
            for index, position, tree in zip(indices, positions, trees, strict=True)
        ]

    def case(self, index: int) -> Case:
        """Tree `index` before tokenisation."""
        return self._case(self.order[index])

    def _case(self, position: int) -> Case:
        number = self.numbers[position]
        return read_cases(self.rows[number], self.kind, self.options)[self.parts[position]]

    def _trees(self, positions: Sequence[int]) -> list[Tokenized]:
        asked = dict.fromkeys(positions)
        known = {position: tree for position in asked if (tree := self.store.get(position)) is not None}
        missing = [position for position in asked if position not in known]
        for position, tree in zip(missing, self.builder.build_all(list(map(self._case, missing))), strict=True):
            self.store.put(position, tree)
            known[position] = tree
        for position in asked:
            tree = known[position]
            if not self.eager:
                refuse_broken_tree(tree, self.numbers[position], self.rows, self.options.skip_bad_rows)
            if not self.seen[position]:
                self.seen[position] = 1 if tree.left_out is None else 2
                self.report.add(self.numbers[position], tree)
        return [known[position] for position in positions]

    def _example(self, position: int, tree: Tokenized) -> Example:
        return to_example(tree, self._case(position), self.numbers[position], self.options.score_prompt)

    def resolve(self, index: int) -> int:
        """The index of the tree that is given for `index`: itself, or the next usable one, the first after the last."""
        total = len(self)
        for step in range(total):
            other = (index + step) % total
            if self.seen[self.order[other]] == 1 or self._trees([self.order[other]])[0].left_out is None:
                return other
        raise self.report.nothing_left()

    def _tokenize_all(self) -> None:
        total = len(self.numbers)
        known = all(map(self.store.has, range(total)))
        with nullcontext() if known else self.store.alone():
            for start in range(0, total, BLOCK):
                self._trees(range(start, min(start + BLOCK, total)))
            self.order = array("q", (position for position in range(total) if self.seen[position] == 1))
            self._refuse_broken()
            if not self.order:
                raise self.report.nothing_left()

    def _refuse_broken(self) -> None:
        """Raise `DataError` for rows that only tokenisation shows to be broken."""
        problems = Problems(self.report.source)
        for reason in BROKEN:
            found = self.report.left_out.get(reason)
            if found is not None:
                for row, detail in found.first:
                    problems.add(row, self.rows.where(row), broken(reason, detail))
                problems.total += found.count - len(found.first)
        if problems.total and not self.options.skip_bad_rows:
            raise problems.error(self.report.rows_read)


def try_template(checked: Checked, rows: Rows | RowStream, builder: TreeBuilder) -> None:
    """Render one conversation of every order of roles: a template that refuses one says so before training."""
    problems = Problems(rows.source)
    for number, case in checked.signatures.values():
        try:
            next(builder.build(case))
        except StopIteration as end:
            if end.value.left_out is not None and end.value.left_out[0] == "unrenderable":
                problems.add(number, rows.where(number), broken(*end.value.left_out))
    if problems.total and not builder.options.skip_bad_rows:
        raise problems.error(checked.report.rows_read)
    checked.signatures.clear()


def broken(reason: str, detail: str) -> RowProblem:
    """What is wrong with a row that only tokenisation shows to be broken."""
    return RowProblem(None, f"{REASONS[reason]}: {detail}")


def refuse_broken_tree(tree: Tokenized, row: int, rows: Rows | RowStream, skip_bad_rows: bool) -> None:
    """Raise `DataError` for a tree that settings or model call an error: a merged boundary, too many positions."""
    if tree.left_out is not None and tree.left_out[0] in REFUSED and not skip_bad_rows:
        problems = Problems(rows.source)
        problems.add(row, rows.where(row), broken(*tree.left_out))
        raise problems.error(row + 1)


def to_example(tree: Tokenized, case: Case, row: int, score_prompt: bool) -> Example:
    """The record that the model side takes, with what the row brings beside its tokens in `extras`."""
    extras = case.extras.copy()
    if tree.labels is not None:
        extras["labels"] = tree.labels
    if "truncated" in tree.flags:
        extras["truncated"] = True
    return Example(tree.prompt_ids, tree.completions, tree.masks, score_prompt, extras, row)


class ExampleStream:
    """Examples from rows that can only be walked; each `iter` starts anew, or where `load_state_dict` says.

    The first rows are checked by `prepare`; a broken row further on raises `DataError` when it is reached, or is
    counted with `skip_bad_rows`. Streams are not cached.
    """

    def __init__(self, rows: RowStream, head: Checked, builder: TreeBuilder, report: DataReport) -> None:
        self.rows, self.builder, self.report = rows, builder, report
        self.kind, self.options = builder.kind, builder.options
        self.vocabulary = builder.encoder.vocabulary
        self.place = (0, 0)  # row, and case of that row, that come next
        self.start = (0, 0)  # where the next walk begins
        self.counted = 0  # rows before this are in the report: a second walk does not count them again
        try_template(head, rows, builder)

    def __iter__(self) -> Iterator[Example]:
        start, self.start = self.start, (0, 0)
        given = 0
        for example in self._walk(start):
            given += 1
            yield example
        if not given and start == (0, 0):
            raise self.report.nothing_left()

    def _walk(self, start: tuple[int, int]) -> Iterator[Example]:
        self.place = start
        counted = self.counted
        block: list[tuple[int, int, Case]] = []
        number = -1
        for number, row in enumerate(self.rows):
            if number < start[0]:
                continue
            self.counted = max(self.counted, number + 1)
            cases = enumerate(self._cases(number, row, fresh=number >= counted))
            block += [(number, part, case) for part, case in cases if (number, part) >= start]
            if len(block) >= STREAM_BLOCK:
                yield from self._examples(block, counted)
                block = []
        yield from self._examples(block, counted)
        self.place = (number + 1, 0)

    def _cases(self, number: int, row: Any, fresh: bool) -> list[Case]:
        """The usable cases of a row; `fresh` if it is to be counted."""
        self.report.rows_read += fresh
        try:
            cases = [case for case, _ in checked_cases(row, self.kind, self.options, self.vocabulary)]
        except RowProblem as problem:
            if not self.options.skip_bad_rows:
                problems = Problems(self.report.source)
                problems.add(number, self.rows.where(number), problem)
                raise problems.error(number + 1) from None
            if fresh:
                self.report.leave_out(number, "bad_row", f"{problem.column or 'row'} {problem.message}")
            return []
        for case in cases:
            if case.left_out is not None and fresh:
                self.report.leave_out(number, *case.left_out)
        return [case for case in cases if case.left_out is None]

    def _examples(self, block: list[tuple[int, int, Case]], counted: int) -> Iterator[Example]:
        """The trees of a block of (row, case of the row, case); rows from `counted` on are put into the report."""
        trees = self.builder.build_all([case for _, _, case in block])
        for (row, part, case), tree in zip(block, trees, strict=True):
            refuse_broken_tree(tree, row, self.rows, self.options.skip_bad_rows)
            if row >= counted:
                self.report.trees += 1
                self.report.conversational += case.chat
                self.report.add(row, tree)
            self.place = (row, part + 1)
            if tree.left_out is None:
                yield to_example(tree, case, row, self.options.score_prompt)

    def state_dict(self) -> dict[str, int]:
        """Where the stream stands, for a later `load_state_dict`: what comes before this has been handed out."""
        return {"row": self.place[0], "part": self.place[1]}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Start the next walk at a saved place; the rows before it are read but not tokenised."""
        if state.get("row", -1) < 0:
            raise DataError(f"The state of a data stream needs a 'row' of 0 or more; got {state}.")
        self.start = (state["row"], state.get("part", 0))
