"""docs/design.md names functions and files: they are there, in the order of the page where it has one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import strop

SOURCE = Path(strop.__file__).parent
PAGE = (Path(__file__).resolve().parents[2] / "docs" / "design.md").read_text(encoding="utf-8")
HOPS = re.findall(r"((?:`[\w.]+`(?:, | \w+ )?)+)[^`|()]*\((\w+/[\w/]+\.py)\)", PAGE)
"""Names in backticks, and the file in brackets after them."""


def test_the_way_of_a_row_has_its_hops() -> None:
    assert len(HOPS) >= 20 and len({file.split("/")[0] for _, file in HOPS}) >= 7


@pytest.mark.parametrize(("names", "file"), HOPS, ids=lambda value: value if value.endswith(".py") else "")
def test_what_the_page_names_is_defined_there(names: str, file: str) -> None:
    text = (SOURCE / file).read_text(encoding="utf-8")
    for name in re.findall(r"`([\w.]+)`", names):
        for part in name.split("."):
            assert re.search(rf"\b(?:def|class) {part}\b", text), f"{file} defines no {part}"


def test_files_in_backticks_exist() -> None:
    named = re.findall(r"`([\w/]+/[\w]+\.py)`", PAGE)
    roots = dict.fromkeys(
        ("tests", "proof", "benchmarks"), SOURCE.parents[1]
    )  # of the project; every other is the package's
    assert not [file for file in named if not (roots.get(file.split("/")[0], SOURCE) / file).is_file()]


def test_the_stations_of_a_step_stand_in_the_code_as_on_the_page() -> None:
    """The order of the table is that of `training_step` and the loop that it calls, where one part is computed."""
    text = (SOURCE / "engine" / "step_trainer.py").read_text(encoding="utf-8")
    stations = [r"self\.prepare_step\(", r"self\.make_work\(", r"self\.reduce\(", r"self\.guard\(", r"self\.record\("]
    begin = text.index("def training_step")
    step = text[begin : text.index("def micro_batches")]
    # the innermost call of `make_work(prepare_step(...))` runs first
    assert re.search(rf"{stations[1]}{stations[0]}", step)
    places = [re.search(station, step).start() for station in stations[2:]]  # type: ignore[union-attr]
    loop = text[text.index("def micro_batches") : text.index("def reduce(")]
    inner = ["self.plan(", "self.whole_step_statistics(", "self.build(", "self.context(", "self.score(", "self.loss("]
    assert places == sorted(places) and (found := [loop.index(call) for call in inner]) == sorted(found)
