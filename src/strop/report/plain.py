"""What stands in the files of a run as plain, bounded data: whoever wrote them, a page can be made of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Any, TypeGuard

from strop.plain_text import bounded, visible

MOST_DEEP = 12
MOST_PARTS = 200_000
MOST_CHARACTERS = 100_000
CUT = "…"
"""Stands where something lies too deep, or would be too much."""


def clean(text: str) -> str:
    """The text as a page may show it: nothing in it acts, and it ends."""
    return visible(bounded(text, MOST_CHARACTERS))


def plain(value: Any) -> Any:
    """The value as dicts with text keys, lists, clean texts, numbers, booleans and None; cut where it has no end."""
    return _plain(value, 0, count())


def _plain(value: Any, depth: int, parts: Iterator[int]) -> Any:
    if next(parts) > MOST_PARTS or depth > MOST_DEEP:
        return CUT
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return value if abs(value) < 1 << 63 else CUT
    if isinstance(value, Mapping):
        return {clean(str(key)): _plain(inner, depth + 1, parts) for key, inner in _some(value.items(), parts)}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(inner, depth + 1, parts) for inner in _some(value, parts)]
    return clean(value if isinstance(value, str) else str(value))


def _some(values: Any, parts: Iterator[int]) -> Iterator[Any]:
    """The values for which there is room."""
    for value in values:
        if next(parts) > MOST_PARTS:
            return
        yield value


def is_number(value: Any) -> TypeGuard[float]:
    """Whether it is a finite number that a curve can show."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) < 1e300 if isinstance(value, int) else math.isfinite(value)


def mapping(value: Any) -> dict[str, Any]:
    """The value if it is a dict, else an empty one."""
    return value if isinstance(value, dict) else {}


def sequence(value: Any) -> Sequence[Any]:
    """The value if it is a list, else an empty one."""
    return value if isinstance(value, list) else []
