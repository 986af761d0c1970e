"""The None that Arrow writes into nested columns, told apart from the None that a user wrote.

In a column of objects every object has every key: where one lacked a key that another had, Arrow wrote null. A null is
taken for such padding where the key has a type, so that some object held a value under it. A key of Arrow's type `null`
never held one: nobody but the user can have written it, and it stays. Columns of other types (JSON kept as text, maps)
have no padding. Where a user wrote null under a key that elsewhere has a value, the two cannot be told apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from strop.records import Row


@dataclass(frozen=True, slots=True)
class Cleaner:
    """Takes the padding out of the objects of a place, be they a row, a value, or in lists of any depth."""

    optional: frozenset[str]  # keys under which None is padding
    inner: Mapping[str, Cleaner]  # what is below other keys

    def __call__(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self(item) for item in value]
        if not isinstance(value, dict):
            return value
        return {
            key: self.inner[key](item) if key in self.inner else item
            for key, item in value.items()
            if item is not None or key not in self.optional
        }


def _cleaner(optional: Iterable[str], inner: Mapping[str, Cleaner | None]) -> Cleaner:
    return Cleaner(frozenset(optional), {name: clean for name, clean in inner.items() if clean is not None})


def cleaner_of_schema(schema: Any) -> Cleaner:
    """The cleaner of the rows of a pyarrow Table or file with this schema."""
    return _cleaner((), {field.name: _cleaner_of_type(field.type) for field in schema})


def _cleaner_of_type(kind: Any) -> Cleaner | None:
    """The cleaner of values of an Arrow type, None where there is nothing to clean."""
    import pyarrow as pa

    while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        kind = kind.value_type
    if not pa.types.is_struct(kind):
        return None
    parts = [kind.field(index) for index in range(kind.num_fields)]
    optional = frozenset(part.name for part in parts if not pa.types.is_null(part.type))
    return _cleaner(optional, {part.name: _cleaner_of_type(part.type) for part in parts})


def cleaner_of_rows(rows: Iterable[Row]) -> Cleaner:
    """The cleaner of the rows of a stream without a schema, from its first rows.

    A key under which none of them holds a value counts as one of type `null`; and as Arrow gives all objects of a
    place the same keys, nothing was padded where their keys differ.
    """
    columns: dict[str, list[Any]] = {}
    for row in rows:
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    return _cleaner((), {name: _cleaner_of_values(values) for name, values in columns.items()})


def _cleaner_of_values(values: list[Any]) -> Cleaner | None:
    lists = [item for value in values if isinstance(value, list) for item in value]
    if lists:
        return _cleaner_of_values(lists)
    objects = [value for value in values if isinstance(value, dict)]
    if not objects or any(found.keys() != objects[0].keys() for found in objects):
        return None
    under = {name: [found[name] for found in objects] for name in objects[0]}
    optional = [name for name, found in under.items() if None in found and any(item is not None for item in found)]
    return _cleaner(optional, {name: _cleaner_of_values(found) for name, found in under.items()})
