"""The None that Arrow writes into nested columns, told apart from the None that a user wrote.

In a column of objects every object has every key: where one lacked a key that another had, Arrow wrote null. A null is
taken for such padding where the key has a type, so that some object held a value under it. A key of Arrow's type `null`
never held one: nobody but the user can have written it, and it stays. Columns of other types (JSON kept as text, maps)
have no padding. Where a user wrote null under a key that elsewhere has a value, the two cannot be told apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from strop.records import Row

Cleaner = Callable[[Any], Any]


def row_cleaner(columns: dict[str, Cleaner | None]) -> Callable[[Row], Row]:
    """A function that takes the padding out of a row."""
    found = {name: clean for name, clean in columns.items() if clean is not None}
    if not found:
        return lambda row: row
    return lambda row: {key: found[key](value) if key in found else value for key, value in row.items()}


def cleaner_of_schema(schema: Any) -> Callable[[Row], Row]:
    """The cleaner of the rows of a pyarrow Table or file with this schema."""
    return row_cleaner({field.name: _cleaner_of_type(field.type) for field in schema})


def _cleaner_of_type(kind: Any) -> Cleaner | None:
    """The cleaner of values of an Arrow type, None where there is nothing to clean."""
    import pyarrow as pa

    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _list_cleaner(_cleaner_of_type(kind.value_type))
    if not pa.types.is_struct(kind):
        return None
    parts = [kind.field(index) for index in range(kind.num_fields)]
    optional = frozenset(part.name for part in parts if not pa.types.is_null(part.type))
    return _object_cleaner(optional, {part.name: _cleaner_of_type(part.type) for part in parts})


def cleaner_of_rows(rows: Iterable[Row]) -> Callable[[Row], Row]:
    """The cleaner of the rows of a stream without a schema, from its first rows.

    A key under which none of them holds a value counts as one of type `null`; and as Arrow gives all objects of a
    place the same keys, nothing was padded where their keys differ.
    """
    columns: dict[str, list[Any]] = {}
    for row in rows:
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    return row_cleaner({name: _cleaner_of_values(values) for name, values in columns.items()})


def _cleaner_of_values(values: list[Any]) -> Cleaner | None:
    lists = [item for value in values if isinstance(value, list) for item in value]
    if lists:
        return _list_cleaner(_cleaner_of_values(lists))
    objects = [value for value in values if isinstance(value, dict)]
    if not objects or any(found.keys() != objects[0].keys() for found in objects):
        return None
    optional, inner = set(), {}
    for name in objects[0]:
        under = [found[name] for found in objects]
        if None in under and any(value is not None for value in under):
            optional.add(name)
        inner[name] = _cleaner_of_values(under)
    return _object_cleaner(frozenset(optional), inner)


def _list_cleaner(clean: Cleaner | None) -> Cleaner | None:
    if clean is None:
        return None
    return lambda value: [clean(item) for item in value] if isinstance(value, list) else value


def _object_cleaner(optional: frozenset[str], inner: dict[str, Cleaner | None]) -> Cleaner | None:
    deeper = {name: clean for name, clean in inner.items() if clean is not None}
    if not optional and not deeper:
        return None

    def clean(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {
            key: deeper[key](item) if key in deeper else item
            for key, item in value.items()
            if item is not None or key not in optional
        }

    return clean
