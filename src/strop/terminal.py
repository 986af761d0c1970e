"""What is printed, in the width of the terminal that it goes to."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import textwrap
from typing import Any

USUAL = 80
"""Columns where nobody says how many there are."""
_BEGINNING = re.compile(r"\s*(?:- )?(?:(?:\S+ )*?\S+ {2,})?")
"""What a line begins with, before its text: blanks, a dash, a column of its own."""


def width_of(stream: Any) -> int:
    """Columns of the terminal behind a stream; COLUMNS of the environment says otherwise."""
    with contextlib.suppress(ValueError):
        if (said := int(os.environ.get("COLUMNS", "0"))) > 0:
            return said
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return os.get_terminal_size(stream.fileno()).columns or USUAL
    return USUAL


def is_terminal(stream: Any) -> bool:
    """Whether somebody looks at it; a stream that is closed has nobody."""
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):
        return False


def in_width(text: str, stream: Any = None) -> str:
    """Lines as they are; in a terminal those that are too wide are broken between words.

    What follows is as far in as the line's own text: behind its blanks, its dash, the column that it begins with.

    Args:
        stream: where it will go; None: standard output.
    """
    stream = sys.stdout if stream is None else stream
    if not is_terminal(stream):
        return text
    width, parts = width_of(stream), list[str]()
    for line in text.splitlines():
        parts += [line] if len(line) <= width else _broken(line, width)
    return "\n".join(parts)


def _broken(line: str, width: int) -> list[str]:
    found = _BEGINNING.match(line)
    deeper = found.end() if found is not None else 0
    if deeper > width // 2:
        deeper = len(line) - len(line.lstrip())
    return textwrap.wrap(
        line, width, subsequent_indent=" " * deeper, break_long_words=False, break_on_hyphens=False,
        replace_whitespace=False,
    )  # fmt: skip
