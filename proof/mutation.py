"""A historical bug as data, and how it is put into a copy of the source."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path("src") / "strop"
_stamps = itertools.count(1)


class ProofError(Exception):
    """The proof itself is wrong: a mutation that fits no source, a test that does not exist."""


@dataclass(frozen=True)
class Edit:
    """One replacement. `find` occurs exactly once in `file` (relative to `src/strop/`)."""

    file: str
    find: str
    replace: str


@dataclass(frozen=True)
class Mutation:
    """A bug that a library once had."""

    name: str
    promises: tuple[int, ...]  # numbers of the promises that it would break
    history: str  # what happened, where
    edits: tuple[Edit, ...]
    tests: tuple[str, ...]  # pytest ids of which at least one must fail
    quick: bool = False  # part of the sample that runs with the test suite


def misfits(mutation: Mutation, root: Path) -> list[str]:
    """Why a mutation cannot be applied to the source below `root`; empty if it can."""
    problems = []
    for edit in mutation.edits:
        path = root / PACKAGE / edit.file
        if not path.is_file():
            problems.append(f"mutation '{mutation.name}': there is no file {edit.file}.")
            continue
        count = path.read_text(encoding="utf-8").count(edit.find)
        if count != 1:
            first = edit.find.strip().splitlines()[0]
            problems.append(
                f"mutation '{mutation.name}': the text to replace occurs {count} times in {edit.file}, not once: "
                f"{first!r} ... The source has changed; write the bug into its new form in proof/mutations/."
            )
        if edit.find == edit.replace:
            problems.append(f"mutation '{mutation.name}': it changes nothing in {edit.file}.")
    return problems


@contextmanager
def applied(mutation: Mutation, copy: Path) -> Iterator[None]:
    """Within the block the copy has the bug; afterwards it is as it was.

    Raises:
        ProofError: the mutation does not fit the source.
    """
    if problems := misfits(mutation, copy):
        raise ProofError("\n".join(problems))
    before: dict[Path, str] = {}
    try:
        for edit in mutation.edits:
            path = copy / PACKAGE / edit.file
            text = path.read_text(encoding="utf-8")
            before.setdefault(path, text)
            _write(path, text.replace(edit.find, edit.replace))
        yield
    finally:
        for path, text in before.items():
            _write(path, text)


def _write(path: Path, text: str) -> None:
    """Write a module with a time of its own: compiled files are told apart by whole seconds."""
    path.write_text(text, encoding="utf-8")
    stamp = 1_000_000_000 + next(_stamps)
    os.utime(path, (stamp, stamp))
