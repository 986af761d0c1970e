"""Which kind of data a set of rows is, by the columns and values of every row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from strop.data.kinds import DETECTED, FORMS, DatasetKind, form_of, names_of, rename_hint
from strop.data.layouts import adapt
from strop.data.options import TokenizeOptions
from strop.errors import DataError


@dataclass(slots=True)
class Detection:
    """What `detect` found: the kind, and how many rows have which shape."""

    kind: DatasetKind
    forms: Counter[str]


def detect(rows: Iterable[Mapping[str, Any]], options: TokenizeOptions | None = None) -> Detection:
    """The kind of a set of rows, from the columns and values of every row (never the first row only).

    Columns are looked at in one fixed order: chosen and rejected, then completions and labels, then completion and
    label, prompt and completion, messages, conversations, text, prompt; ids before all of them.

    Raises `DataError` when the rows have no known columns, or are of different kinds.
    """
    options = options or TokenizeOptions()
    kinds: Counter[DatasetKind] = Counter()
    first: dict[DatasetKind, int] = {}
    forms: Counter[str] = Counter()
    columns: dict[str, None] = {}
    unknown = 0
    number = first_unknown = -1
    for number, row in enumerate(rows):
        columns.update(dict.fromkeys(row))
        row, _ = adapt(dict(row), None, options)
        form = form_of(row, FORMS, options)
        if form is None:
            first_unknown = first_unknown if unknown else number
            unknown += 1
            continue
        kind = DETECTED[form]
        if None in row.values() and kinds and kind is not kinds.most_common(1)[0][0]:
            # A column that is None here is a broken value of the kind that the other rows have, not another kind.
            meant = form_of(dict.fromkeys(row), FORMS, options)
            kind = DETECTED[meant] if meant is not None and DETECTED[meant] in kinds else kind
        forms[form] += 1
        kinds[kind] += 1
        first.setdefault(kind, number)
    source = getattr(rows, "source", "rows")
    if number < 0:
        raise DataError(f"{source}: there are no rows. Check that the data were written to the end.")
    if not kinds:
        raise DataError(f"{source}: no known columns. Found {names_of(columns)}.{rename_hint(columns)}")
    if unknown or len(kinds) > 1:
        found = ", ".join(f"{count} {kind} (first: row {first[kind]})" for kind, count in kinds.most_common())
        more = f", {unknown} without known columns (first: row {first_unknown})" if unknown else ""
        raise DataError(
            f"{source}: the rows are of different kinds: {found}{more}. "
            "Keep one kind per file; to hear what a row lacks, say what they are for (strop check FILE --method NAME)."
        )
    return Detection(kinds.most_common(1)[0][0], forms)
