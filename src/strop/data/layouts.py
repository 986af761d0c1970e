"""Layouts of public data sets under other column names, and what to do where a prompt may hide in another column.

A row in a known layout is given strop's columns while it is read; what the table does not know is never guessed:
where no prompt was found and a column may hold one, the row is an error that names the mapping to set.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from strop.data.findings import RowProblem
from strop.data.kinds import ACCEPTED, FORMS, DatasetKind, form_of, is_label
from strop.data.options import TokenizeOptions
from strop.data.public_sets import LAYOUTS, Layout
from strop.data.rows import from_json, join_columns
from strop.errors import DataError
from strop.plain_text import first_line
from strop.records import Row

PROMPT_NAMES = frozenset(
    {"instruction", "input", "question", "query", "problem", "context", "system", "system_prompt", "user", "history"}
    | {"user_prompt", "conversations", "conversation", "messages", "dialogue", "dialog", "chat"}
)
"""Columns that hold a prompt or a part of it wherever they hold text."""
PROMPT_STEMS = ("prompt", "instruct", "question", "query", "input", "problem", "context", "post", "article", "dialog")
"""Parts of the names of columns that may hold a prompt, if their text has several words."""


GIVES = {
    DatasetKind.PREFERENCE: ("pair",),
    DatasetKind.UNPAIRED_PREFERENCE: ("pair", "completion"),
    DatasetKind.PROMPT_ONLY: ("pair", "completion"),
    DatasetKind.LANGUAGE_MODELING: ("completion", "messages"),
    DatasetKind.PROMPT_COMPLETION: ("completion", "messages"),
}


def adapt(row: Row, kind: DatasetKind | None, options: TokenizeOptions) -> tuple[Row, Layout | None]:
    """A row in strop's columns, and the layout it came in; the row itself where it has them already.

    `kind` is what the rows are for; None: what they look like, which broken values do not change. Raises `RowProblem`
    where a row has the columns of a layout and not its values.
    """
    present = tuple(name for name, value in row.items() if value is not None)
    candidates = _candidates(present, kind)
    if not candidates or not _is_wanting(row, kind, options):
        return row, None
    for layout in candidates:
        # a labelled answer may come in any layout of answers, but what tells good from bad must be there
        labelled = kind is not DatasetKind.UNPAIRED_PREFERENCE or layout.gives == "pair" or is_label(row.get("label"))
        if labelled and not _hidden_prompts(row, layout.used | {"prompt"}):
            try:
                return _converted(row, layout, kind), layout
            except RowProblem:
                if kind is not None:
                    raise
                return dict.fromkeys(FORMS[layout.gives]), layout
    return row, None


@lru_cache(1024)
def _candidates(present: tuple[str, ...], kind: DatasetKind | None) -> tuple[Layout, ...]:
    """The layouts whose columns are all there, those that use most of them first."""
    gives = GIVES.get(kind, ()) if kind is not None else ("pair", "completion", "messages")
    found = [layout for layout in LAYOUTS if layout.gives in gives and set(layout.needs) <= set(present)]
    return tuple(sorted(found, key=lambda layout: -len(layout.used & set(present))))


def _is_wanting(row: Row, kind: DatasetKind | None, options: TokenizeOptions) -> bool:
    """Whether a row lacks strop's columns, or a part of its prompt, as it is."""
    form = form_of(row, FORMS if kind is None else ACCEPTED[kind], options)
    if form == "pair":
        implicit = row.get("prompt") is None and not _begins_both(row)
        return implicit or (isinstance(row.get("prompt"), str) and bool(row.get("system")))
    return form is None or (kind is None and form == "prompt")


def _begins_both(row: Row) -> bool:
    """Whether chosen and rejected are whole conversations with the same first message, so that they hold the prompt."""
    first = [
        value[0] if isinstance(value, list) and len(value) > 1 else None for value in (row["chosen"], row["rejected"])
    ]
    return first[0] is not None and first[0] == first[1]


def _converted(row: Row, layout: Layout, kind: DatasetKind | None) -> Row:
    try:
        return _in_our_columns(row, layout, kind)
    except RowProblem:
        raise
    except (DataError, LookupError, TypeError, ValueError, AttributeError) as problem:
        cause = f"has the columns of {layout.example}, but not such values ({first_line(problem)})"
        raise RowProblem(None, cause, "Mend the values, or rename the columns that mean something else") from None


def _in_our_columns(row: Row, layout: Layout, kind: DatasetKind | None) -> Row:
    kept = row if kind is DatasetKind.PROMPT_ONLY else {k: v for k, v in row.items() if k not in layout.used}
    new = layout.read(row) if layout.read is not None else {ours: row[theirs] for ours, theirs in layout.renames}
    if layout.prompt:
        prompt = from_json(join_columns(row, layout.prompt.split("+")), "[{")
        if layout.system and layout.system in row:
            said = [] if not row[layout.system] else [{"role": "system", "content": row[layout.system]}]
            prompt = [*said, *([{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt)]
        new = {"prompt": prompt, **new}
    if kind is DatasetKind.PROMPT_ONLY and "prompt" in new:
        new = {"prompt": new["prompt"]}
    return {**kept, **new}


def _hidden_prompts(row: Mapping[str, Any], used: frozenset[str]) -> list[str]:
    """Columns that are not used and may hold the prompt or a part of it."""
    return [name for name, value in row.items() if name not in used and may_be_prompt(name, value)]


def may_be_prompt(name: str, value: Any) -> bool:
    """Whether a column looks as if it held a prompt."""
    if isinstance(value, list):
        return name in PROMPT_NAMES and bool(value) and isinstance(value[0], dict)
    if not isinstance(value, str) or not value.strip():
        return False
    return name in PROMPT_NAMES or (any(stem in name.lower() for stem in PROMPT_STEMS) and len(value.split()) > 2)


def refuse_hidden_prompt(row: Row, shared: str) -> None:
    """Raise `RowProblem` for a pair of texts without a prompt, if another column may hold it.

    `shared` is what both answers begin with; a column that is repeated there is no hidden prompt.
    """
    hidden = _hidden_prompts(row, frozenset())
    hidden = [name for name in hidden if not isinstance(row[name], str) or row[name].strip() not in shared]
    if hidden:
        mapping = f"prompt={'+'.join(hidden)}"
        raise RowProblem(
            "prompt",
            f"is missing, but {' and '.join(map(repr, hidden))} may hold it",
            f'Set columns="{mapping}" (on the command line --columns {mapping}), or remove what is no prompt',
        )
