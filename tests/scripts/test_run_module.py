"""`strop run -m PACKAGE.MODULE`: a package of several files, whose imports are relative."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from strop.cli import main

TRAIN = """
import sys
from trl import SFTConfig
from .settings import RATE

if __name__ == "__main__":
    open("made", "w").write(f"{SFTConfig.__module__} {RATE} {sys.argv[1:]} {__package__}")
"""


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "recipes_of_mine").mkdir()
    for name, text in {"__init__": "import trl\n", "settings": "RATE = 3", "train": TRAIN}.items():
        (tmp_path / "recipes_of_mine" / f"{name}.py").write_text(text)
    for name in [name for name in sys.modules if name.startswith("recipes_of_mine")]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.usefixtures("asked")
def test_a_module_runs_with_its_package(tmp_path: Path) -> None:
    assert main(["run", "-m", "recipes_of_mine.train", "--beta", "2"]) == 0
    assert (tmp_path / "made").read_text() == "strop.scripts.alias 3 ['--beta', '2'] recipes_of_mine"


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize(
    ("words", "message"),
    [(["-m"], "needs a module"), (["-m", "recipes_of_mine.trian"], "no such module"), (["-m", "no_pkg.x"], "no such")],
    ids=str,
)
def test_a_module_that_is_not_there(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *words]) == 2
    assert message in capsys.readouterr().err
