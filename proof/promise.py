"""What a promise is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Promise:
    """One promise. The tests that stand for it are those that catch its mutations, and `further`."""

    number: int
    title: str
    text: str
    further: tuple[str, ...] = ()  # files and folders of tests that no mutation of it names
    open: tuple[str, ...] = ()  # what it says and no test covers yet
