"""What a promise is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Promise:
    """One promise. The tests of its mutations lie within `tests`."""

    number: int
    title: str
    text: str
    tests: tuple[str, ...]  # pytest ids: files, or tests within them
    open: tuple[str, ...] = ()  # what it says and no test covers yet
