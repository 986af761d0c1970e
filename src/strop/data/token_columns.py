"""Columns of rows that are tokenised already: ids, and what is scored of them."""

from __future__ import annotations

from collections.abc import Callable

from strop.data.findings import RowProblem, kind_of_value
from strop.data.rows import plain
from strop.records import Row

LARGEST_ID = 2**31 - 1


def read_ids(row: Row, column: str) -> list[int]:
    """The token ids of a column."""
    value = plain(row.get(column))
    if not isinstance(value, list | tuple):
        raise RowProblem(column, f"is {kind_of_value(value)}", "Write a list of token ids")
    for position, token in enumerate(value):
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token <= LARGEST_ID:
            raise RowProblem(column, f"holds {kind_of_value(token)} at position {position}", "Write ids, 0 or more")
    return list(value)


def read_mask(row: Row, column: str, size: int, scored: Callable[[object], bool]) -> list[int] | None:
    """1 where an entry of a column says that its id is scored, 0 elsewhere; None where the row has no such column."""
    value = plain(row.get(column))
    if value is None:
        return None
    if not isinstance(value, list | tuple) or len(value) != size:
        found = f"{len(value)} entries" if isinstance(value, list | tuple) else kind_of_value(value)
        raise RowProblem(column, f"has {found} for {size} ids", "Give one entry per id")
    for position, item in enumerate(value):
        if not isinstance(item, bool | int | float) or item != item:
            raise RowProblem(column, f"holds {kind_of_value(item)} at position {position}", "Write numbers")
    return [int(scored(item)) for item in value]
