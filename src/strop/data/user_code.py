"""Rows that a user's own function makes: `formatting_func(row) -> str`, and a `data_collator`.

Rows that can be indexed are made once, so a function that draws at random gives one text per row; a stream is made
while it is walked, and never read ahead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from strop.data.load import load_rows
from strop.data.rows import ListRows, Rows, RowStream, plain
from strop.errors import DataError, did_you_mean
from strop.plain_text import first_line
from strop.records import Row

COLLATED = ("input_ids", "labels", "attention_mask", "completion_mask", "assistant_masks", "position_ids")
"""What a collator may return; position ids only where they count from 0."""


def formatted(source: Any, function: Callable[[Row], Any], field: str) -> Rows | RowStream:
    """Rows with a text column made by the user's function, one string per row."""

    def text_of(number: int, row: Row) -> Row:
        text = function(row)
        if not isinstance(text, str):
            raise DataError(
                f"formatting_func returned {type(text).__name__} for row {number}; it must return one string for a row."
            )
        return {field: text}

    return _made(source, text_of)


def collated(source: Any, collator: Callable[[list[Any]], Mapping[str, Any]]) -> Rows | RowStream:
    """Tokenised rows from a collator that is given one row at a time; labels of -100 are not learned."""

    def features_of(number: int, row: Row) -> Row:
        try:
            features = collator([row])
        except Exception as error:  # of the user's code, or of a collator for tokenised rows
            raise DataError(
                f"data_collator raised {type(error).__name__} for row {number}: {first_line(error)} It is given rows "
                f"as they are, here with {sorted(row)}. One that wants input_ids needs rows that have them; without a "
                "data_collator, rows are tokenised here."
            ) from error
        return _features_of(number, features)

    return _made(source, features_of)


def _made(source: Any, function: Callable[[int, Row], Row]) -> Rows | RowStream:
    rows = load_rows(source)
    if isinstance(rows, Rows):
        made = ListRows([function(number, row) for number, row in enumerate(rows)], rows.source)
        made.notes = rows.notes
        return made
    return RowStream(lambda: (function(number, row) for number, row in enumerate(rows)), rows.source)


def _features_of(number: int, features: Mapping[str, Any]) -> Row:
    """The columns that a collator returned for row `number`; raises `DataError` for what would not be honoured."""
    missing = [name for name in ("input_ids", "labels") if name not in features]
    unknown = [name for name in features if name not in COLLATED]
    if missing or unknown:
        what = f"without {missing}" if missing else f"and {unknown} would not be used"
        raise DataError(
            f"data_collator returned {sorted(features)} for row {number}, {what}."
            f"{did_you_mean(missing[0], features) if missing else ''} It must return input_ids and labels, and may "
            f"return {', '.join(COLLATED[2:])}."
        )
    row: Row = {}
    for name, value in features.items():
        lists = plain(value)
        if not isinstance(lists, list | tuple) or len(lists) != 1 or not isinstance(plain(lists[0]), list | tuple):
            raise DataError(f"data_collator returned {name} for row {number} that is not one list of one row's tokens.")
        row[name] = plain(lists[0])
    kept = row.get("attention_mask") or [1] * len(row["input_ids"])
    places = [place for place, on in zip(row.pop("position_ids", ()), kept, strict=False) if on]
    if places != list(range(len(places))):
        raise DataError(
            f"data_collator returned position_ids for row {number} that do not count from 0: several documents in one "
            "row. Return one document per row, and set packing=True."
        )
    return row
