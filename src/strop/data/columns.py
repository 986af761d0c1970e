"""Single columns of a row, read and checked: text, text or messages, a label, a margin, token ids and their masks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from strop.data.findings import RowProblem, kind_of_value
from strop.data.kinds import is_label
from strop.data.messages import Message, is_conversation, read_messages
from strop.data.rows import plain
from strop.records import Row

Said = str | list[Message]
LARGEST_ID = 2**31 - 1


def read_text(row: Row, column: str) -> str:
    """A column that must be a string; raises `RowProblem`."""
    value = plain(row.get(column))
    if not isinstance(value, str):
        if value is None:
            cause, fix = ("is None" if column in row else "is missing"), "Give it a string, or remove the row"
        else:
            cause, fix = f"is {kind_of_value(value)}, not a string", "Write text"
        raise RowProblem(column, cause, fix)
    return value


def read_said(row: Row, column: str) -> Said:
    """A column that may be a string or messages; raises `RowProblem`."""
    value = plain(row.get(column))
    if is_conversation(value):
        return read_messages(value, column)
    if value is not None and not isinstance(value, str):
        raise RowProblem(column, f"is {kind_of_value(value)}", "Write a string, or a list of messages")
    return read_text(row, column)


def read_label(row: Row) -> bool:
    """The `label` column as true or false; raises `RowProblem`."""
    value = plain(row.get("label"))
    if not is_label(value):
        raise RowProblem("label", f"is {kind_of_value(value)}", "Write true (desirable) or false (undesirable)")
    return value.strip().lower() in ("true", "1") if isinstance(value, str) else bool(value)


def read_margin(value: Any) -> float:
    """A finite number; raises `RowProblem`."""
    value = plain(value)
    try:
        margin = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        margin = math.nan
    if not math.isfinite(margin):
        raise RowProblem("margin", f"is {kind_of_value(value)}", "Write a finite number")
    return margin


def read_step_label(value: Any, number: int) -> float:
    """The label of step `number`, 0 to 1; raises `RowProblem`."""
    value = plain(value)
    if isinstance(value, bool | int | float) and 0 <= value <= 1:
        return float(value)
    raise RowProblem("labels", f"label {number} is {kind_of_value(value)}", "Write true, false, or a number in 0..1")


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
