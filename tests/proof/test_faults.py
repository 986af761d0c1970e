"""The page of faults: a row that was tried again takes the place of the old one, and all others stay as they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from proof import faults

ROWS = {"writes fail": (3, 3, "2026-11-01"), "agents lie": (1200, 1199, "2026-11-02")}


def test_a_table_is_read_as_it_was_written() -> None:
    table = faults.faults(ROWS)
    assert faults.rows_of(table) == ROWS and "| **all** | 1,203 | 1,202 | |" in table


def test_the_page_of_the_project_is_read() -> None:
    rows = faults.rows_of(faults.part(faults.PAGE.read_text(encoding="utf-8"), "faults"))
    assert rows.keys() <= faults.KINDS.keys() and len(rows) >= 6
    assert all(tried == survived > 0 for tried, survived, _ in rows.values())


def test_kinds_by_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text(faults.with_part("<!-- faults: written by `make faults` -->\n<!-- end of faults -->\n", "faults",
                                     faults.faults(ROWS)))  # fmt: skip
    asked: list[str] = []

    def trials(kind: str, wrong: str = ""):
        def tried(known):
            asked.append(kind)
            yield "one", 2, wrong

        return tried

    monkeypatch.setattr(faults, "PAGE", page)
    monkeypatch.setattr(faults, "KEPT", tmp_path / "kept.json")
    monkeypatch.setattr(faults, "KINDS", {kind: trials(kind) for kind in ROWS})
    assert faults.main(["lie"]) == 0 and asked == ["agents lie"]
    rows = faults.rows_of(page.read_text())
    assert rows["writes fail"] == ROWS["writes fail"]
    assert rows["agents lie"][:2] == (2, 2) and rows["agents lie"][2] > "2026-11-02"
    assert faults.main(["lie"]) == 0 and asked == ["agents lie"], "it is kept what the same source was tried with"
    assert faults.main(["nothing so called"]) == 2
    assert json.loads((tmp_path / "kept.json").read_text())["kinds"].keys() == {"agents lie"}
    monkeypatch.setattr(faults, "KINDS", {kind: trials(kind, "lost") for kind in ROWS})
    assert faults.main(["writes"]) == 1, "what was lost"
