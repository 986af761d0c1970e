"""Hundreds of broken files, made by rule: one designed error each, with the place, the column and what to do."""

from __future__ import annotations

import random
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.broken_files import BrokenFile, whole_files
from tests.support.tokenizers import toy_tokenizer

from strop.data import RowStream, check_rows, load_rows, prepare
from strop.errors import StropError

Entrance = Callable[[BrokenFile], Any]


def trouble_of(broken: BrokenFile, enter: Entrance) -> str | None:
    """What is wrong with the answer to a broken file, None if nothing is."""
    try:
        enter(broken)
    except StropError as error:
        message = str(error).replace("row 1", "line 2")  # a stream counts rows, not lines
        if missing := [name for name in broken.names if name.replace("row 1", "line 2") not in message]:
            return f"{missing} not in {message[:300]!r}"
        if "site-packages" in "".join(traceback.format_exception(error)):
            return "the traceback goes through other libraries"
        findings = getattr(error, "findings", None)
        if broken.column is not None and not (findings and findings[0].row == 1 and findings[0].fix):
            return f"row and fix are not told: {findings}"
        return None if len(message.splitlines()[0]) > len(broken.path.name) + 20 else f"too short: {message!r}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def enter_prepare(variant: str) -> Entrance:
    tokenizer = toy_tokenizer(variant)
    return lambda broken: prepare(str(broken.path), broken.kind, tokenizer)


def as_stream(path: str) -> RowStream:
    rows = load_rows(path)
    return RowStream(lambda: iter(rows), rows.source)


@pytest.mark.parametrize("entrance", ["prepare", "check_rows", "stream"])
def test_broken_files(entrance: str, all_broken_files: list[BrokenFile]) -> None:
    """Every file, through the doors of the library. A stream is checked as far as its head goes."""
    enter: Entrance = {
        "prepare": enter_prepare("chatml"),
        "check_rows": lambda broken: check_rows(load_rows(str(broken.path)), broken.kind),
        "stream": lambda broken: prepare(as_stream(str(broken.path)), broken.kind, toy_tokenizer("chatml")),
    }[entrance]
    found = [
        (broken.name, trouble)
        for broken in all_broken_files
        if not (entrance == "check_rows" and broken.needs_tokenizer)
        if (trouble := trouble_of(broken, enter)) is not None
    ]
    assert not found, "\n".join(f"{name}: {trouble}" for name, trouble in found)


def test_there_are_enough_of_every_kind(all_broken_files: list[BrokenFile]) -> None:
    files = all_broken_files
    assert len(files) > 300 and len({broken.name for broken in files}) == len(files)
    kinds = Counter(broken.kind for broken in files)
    suffixes = Counter(broken.path.suffix for broken in files)
    assert len(kinds) == 6 and min(kinds.values()) >= 10, kinds
    assert set(suffixes) == {".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet", ".arrow"}, suffixes
    assert min(suffixes.values()) >= 10, suffixes


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet", ".arrow", "-file.arrow"])
def test_a_file_cut_anywhere(suffix: str, tmp_path: Path) -> None:
    """A file that ends at any byte is read or refused: no foreign error, no dead process."""
    whole = whole_files()[suffix]
    path = tmp_path / f"a{suffix}"
    refused = 0
    for size in range(0, len(whole), 1 if len(whole) < 500 else 7):
        path.unlink(missing_ok=True)
        path.write_bytes(whole[:size])
        refused += refuses(path)
    assert refused > 0


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet", ".arrow", "-file.arrow"])
@pytest.mark.parametrize("count", [60, pytest.param(3000, marks=pytest.mark.slow)])
def test_a_file_with_wrong_bytes(suffix: str, count: int, tmp_path: Path) -> None:
    """One to three bytes of a file are others than were written: it is read or refused."""
    whole = whole_files()[suffix]
    draw = random.Random(f"{suffix} 0")
    for number in range(count):
        content = bytearray(whole)
        for _ in range(draw.randint(1, 3)):
            content[draw.randrange(len(content))] = draw.choice([0, 10, 13, 34, 91, 123, 195, 255, draw.randrange(256)])
        path = tmp_path / f"{number}{suffix}"  # a new file each time: Arrow files are mapped while they are in use
        path.write_bytes(content)
        refuses(path)


def refuses(path: Path) -> bool:
    """Whether a file is refused; anything but a `StropError` is raised."""
    try:
        rows = load_rows(path)
        check_rows(rows, "language_modeling" if path.suffix == ".txt" else "preference").render()
        assert len([rows[i] for i in range(len(rows))]) == len(list(rows))  # type: ignore[arg-type]
    except StropError:
        return True
    return False
