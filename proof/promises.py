"""What strop promises, and the tests that stand for each promise."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Promise:
    """One promise. A mutation's tests lie within `tests`."""

    number: int
    title: str
    text: str
    tests: tuple[str, ...]
    open: tuple[str, ...] = ()  # parts of it that no test covers yet


PROMISES: tuple[Promise, ...] = ()
