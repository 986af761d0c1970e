"""Links between pages lead somewhere: to a file, or a page that the site makes; to a heading that is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from strop.methods.registry import METHODS

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
LINK = re.compile(r"\]\(([^)\s]+)\)")
MADE = {"metrics.md", "settings.md", "mathematics.md", *(f"methods/{method.verb}.md" for method in METHODS)}
"""Pages that are made from the source (pages/hooks.py), which the site alone has."""


def links_of(text: str) -> list[str]:
    """What a page links to within the project; examples of code are none of it."""
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    return [link for link in LINK.findall(prose) if not re.match(r"[a-z]+:", link)]


def anchors_of(text: str) -> set[str]:
    """The headings as the site and hosts of code name them."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", title.strip().lower())) for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in links_of(page.read_text(encoding="utf-8")):
        target, _, anchor = link.partition("#")
        place = (page.parent / target).resolve() if target else page
        if page.parent.name == "docs" and target in MADE:
            continue
        assert place.exists(), f"{page.name} links to {link}"
        assert not anchor or anchor in anchors_of(place.read_text(encoding="utf-8")), f"{page.name} links to {link}"


def test_a_link_out_of_the_docs_is_turned_round_for_the_site() -> None:
    from pages.hooks import on_page_markdown

    for page in (ROOT / "docs").glob("*.md"):
        outside = [link for link in links_of(on_page_markdown(page.read_text(encoding="utf-8"))) if link[:3] == "../"]
        assert not outside, f"{page.name}: {outside} are not on the site"
