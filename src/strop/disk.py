"""Files that are there whole or not at all, and a sentence where a disk refuses them."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from strop.errors import SetupError

FULL = (errno.ENOSPC, errno.EDQUOT)


def room_at(folder: Path) -> tuple[Path, int]:
    """The folder, or the nearest above it that is there, and the bytes that are free in it."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder, shutil.disk_usage(folder).free


@contextmanager
def written_beside(path: Path) -> Iterator[IO[bytes]]:
    """A file to write under another name; it takes its own at the end, so that it is there whole or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text whole; a lone surrogate as the escape that JSON and YAML have for it.

    Raises:
        SetupError: the disk is full, or cannot be written; what the file held before is as it was.
    """
    with refusals_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_beside(path) as file:
            file.write(text.encode("utf-8", "backslashreplace"))


@contextmanager
def refusals_named(path: Path) -> Iterator[None]:
    """Within it, a disk that refuses to write `path` raises `SetupError`."""
    try:
        yield
    except OSError as error:
        room = "Free disk space, or choose" if error.errno in FULL else "Choose"
        raise SetupError(
            f"{path} cannot be written: {error.strerror or error}. {room} another folder; what was there before is as "
            "it was."
        ) from error
