"""Rows behind one small interface: how many, the i-th, one after the other, and where it stands in its file.

`Rows` can be indexed and re-read in any order without holding the set in memory twice; `RowStream` can only be
walked from the start. Both are torch-free, cheap to pickle and safe to share between forked workers.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any, overload

from strop.errors import DataError
from strop.records import Row


class Rows(Sequence[Row]):
    """Rows that can be indexed. `source` names them in messages, `notes` say how they were read."""

    source: str = "rows"
    notes: tuple[str, ...] = ()

    def row(self, index: int) -> Row:
        """The row with number `index`, 0 <= index < len."""
        raise IndexError(index)

    def where(self, index: int) -> str:
        """Where row `index` stands, as the reader of an error message finds it."""
        return f"{self.source}, row {index}"

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self.row(number) for number in range(*index.indices(len(self)))]
        number = index + len(self) if index < 0 else index
        if not 0 <= number < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return self.row(number)

    def __iter__(self) -> Iterator[Row]:
        return (self.row(i) for i in range(len(self)))

    def map(self, function: Callable[[Row], Row]) -> Rows:
        """The rows, each changed by `function` when it is read."""
        return MappedRows(self, function)


class ListRows(Rows):
    """Rows held in a list."""

    def __init__(self, rows: Sequence[Row], source: str = "rows", lines: Sequence[int] | None = None) -> None:
        self.rows, self.source, self.lines = rows, source, lines

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, index: int) -> Row:
        return self.rows[index]

    def where(self, index: int) -> str:
        return f"{self.source}, line {self.lines[index]}" if self.lines else super().where(index)


class MappedRows(Rows):
    """The rows of another set, changed one by one."""

    def __init__(self, base: Rows, function: Callable[[Row], Row]) -> None:
        self.base, self.function, self.source, self.notes = base, function, base.source, base.notes

    def __len__(self) -> int:
        return len(self.base)

    def row(self, index: int) -> Row:
        return self.function(self.base[index])

    def __iter__(self) -> Iterator[Row]:
        return map(self.function, self.base)

    def where(self, index: int) -> str:
        return self.base.where(index)


class JoinedRows(Rows):
    """Several sets, one after the other."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        self.parts = list(parts)
        self.source = ", ".join(part.source for part in parts[:3]) + (", ..." if len(parts) > 3 else "")
        self.starts = list(accumulate(map(len, parts), initial=0))

    def __len__(self) -> int:
        return self.starts[-1]

    def _find(self, index: int) -> tuple[Rows, int]:
        part = bisect_right(self.starts, index) - 1
        return self.parts[part], index - self.starts[part]

    def row(self, index: int) -> Row:
        part, inner = self._find(index)
        return part[inner]

    def __iter__(self) -> Iterator[Row]:
        for part in self.parts:
            yield from part

    def where(self, index: int) -> str:
        part, inner = self._find(index)
        return part.where(inner)


class RowStream:
    """Rows that can only be walked from the start; every `iter` starts anew."""

    def __init__(self, start: Callable[[], Iterator[Row]], source: str = "stream") -> None:
        self.start, self.source = start, source

    def __iter__(self) -> Iterator[Row]:
        return iter(self.start())

    def where(self, index: int) -> str:
        """Where row `index` stands."""
        return f"{self.source}, row {index}"

    def map(self, function: Callable[[Row], Row]) -> RowStream:
        """The rows, each changed by `function` when it is read."""
        return RowStream(lambda: map(function, self.start()), self.source)


def parse_columns(text: str) -> dict[str, list[str]]:
    """`"prompt=instruction+input, completion=output"` as `{ours: [theirs, ...]}`; raises `DataError`."""
    found: dict[str, list[str]] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        ours, equals, theirs = part.partition("=")
        names = [name.strip() for name in theirs.split("+")]
        if not equals or not ours.strip() or not all(names) or ours.strip() in found:
            raise DataError(f"columns: {part!r} is no mapping. Write OURS=THEIRS, like prompt=instruction+input.")
        found[ours.strip()] = names
    return found


def map_columns(columns: dict[str, list[str]]) -> Callable[[Row], Row]:
    """A function for `Rows.map` that makes each of our columns of one or several of theirs (`join_columns`)."""
    gone = {name for names in columns.values() for name in names} | columns.keys()
    return lambda row: (
        {key: value for key, value in row.items() if key not in gone}
        | {ours: join_columns(row, theirs) for ours, theirs in columns.items()}
    )


def join_columns(row: Row, names: Sequence[str]) -> Any:
    """The value of a column, or the texts of several with a blank line between them; empty ones are left away."""
    values = [row[name] for name in names if row.get(name) not in (None, "")]
    texts = [value for value in values if isinstance(value, str)]
    if len(values) > 1 and len(texts) == len(values):
        return "\n\n".join(texts)
    if len(values) > 1:
        raise DataError(f"columns {' and '.join(map(repr, names))} cannot be joined: not all of them hold text.")
    return values[0] if values else row.get(names[0])


def from_json(value: Any, opening: str = "") -> Any:
    """What a string that begins so holds as JSON; any other value, and a string that holds none, as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith(opening):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def plain(value: Any) -> Any:
    """A value of numpy or pandas as the Python value it stands for; other values as they are."""
    if hasattr(value, "tolist") and not isinstance(value, str | bytes | list | dict):
        return value.tolist()
    return value


def deep_plain(value: Any) -> Any:
    """As `plain`, in lists and objects too."""
    value = plain(value)
    if isinstance(value, list | tuple):
        return [deep_plain(item) for item in value]
    return {key: deep_plain(item) for key, item in value.items()} if isinstance(value, dict) else value
