"""Markdown that more than one page is made of."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Sequence

SECTION = re.compile(r"(Args|Attributes|Returns|Yields|Raises|Example|Examples):")
ENTRY = re.compile(r"([\w*, ./]+): (.*)")


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; bars and line breaks in cells are kept from ending them."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(_cell(value) for value in row) + " |" for row in rows)])


def _cell(value: object) -> str:
    return " ".join(str(value).replace("|", "\\|").split())


def docstring(text: str | None) -> str:
    """What code says of itself; its sections (arguments, results, errors) as lists."""
    return "\n".join(_lines(inspect.cleandoc(text or "").splitlines()))


def _lines(lines: Sequence[str]) -> Iterator[str]:
    section = ""
    for line in lines:
        if found := SECTION.fullmatch(line):
            section = found[1]
            yield f"\n**{section}**\n"
        elif line and not line.startswith("    "):
            section = ""
            yield line
        elif section in ("Returns", "Yields"):
            yield line[4:]
        elif section and not section.startswith("Example") and (entry := ENTRY.fullmatch(line[4:])):
            yield f"- `{entry[1]}`: {entry[2]}"
        else:
            yield line
