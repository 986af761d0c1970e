"""The first page that a person sees."""

from __future__ import annotations

from strop.cli import TOOLS, usage
from strop.methods.registry import METHODS


def test_the_page_names_every_verb_and_fits_a_terminal() -> None:
    lines = usage().splitlines()
    assert max(map(len, lines)) <= 80
    named = {line.split()[0] for line in lines if line.startswith("  ")}
    assert named >= {*TOOLS, *(method.verb for method in METHODS)}
