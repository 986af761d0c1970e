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
    """Rows with a text column made by the user's function, one string per row.

    A function for batches, which is given a list for every column and returns a list of strings, is recognised at the
    first row that it cannot make a string of, and is given batches of one row from there on.
    """
    batched = False

    def text_of(number: int, row: Row) -> Row:
        nonlocal batched
        if not batched:
            try:
                text = function(row)
            except Exception as error:  # of the user's code, or of a function for batches
                text = error
            if isinstance(text, str):
                return {field: text}
            if (alone := _of_batch(function, row)) is None:
                raise _not_a_text(number, text) from (text if isinstance(text, Exception) else None)
            batched = True
            return {field: alone}
        if (alone := _of_batch(function, row)) is None:
            raise _not_a_text(number, "another number of texts")
        return {field: alone}

    return _made(source, text_of)


def _of_batch(function: Callable[[Row], Any], row: Row) -> str | None:
    """The text of a row from a function for batches; None if it is none."""
    try:
        texts = function({name: [value] for name, value in row.items()})
    except Exception:  # of the user's code, which is for rows then
        return None
    return texts[0] if isinstance(texts, list) and len(texts) == 1 and isinstance(texts[0], str) else None


def _not_a_text(number: int, got: Any) -> DataError:
    what = f"raised {type(got).__name__} for row {number}: {first_line(got)}" if isinstance(got, Exception) else ""
    what = what or f"returned {got if isinstance(got, str) else type(got).__name__} for row {number};"
    return DataError(
        f"formatting_func {what} It is given a row and must return one string, or a batch of rows (a list for every "
        "column) and return a list with a string for each."
    )


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
