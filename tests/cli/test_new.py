"""`strop new`: what is written works as it stands, names are checked, and nothing is overwritten."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import pytest

from strop.cli import main


@pytest.mark.parametrize("kind", ["reward", "environment"])
def test_what_is_written_passes_its_test(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                         capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    """A method is tried by tests/testing/test_sixteenth_method.py."""
    assert main(["new", kind, f"own {kind}", "--folder", str(tmp_path)]) == 0
    assert f"python -m pytest {tmp_path / f'test_own_{kind}.py'}" in capsys.readouterr().out
    monkeypatch.syspath_prepend(tmp_path)
    written = importlib.import_module(f"test_own_{kind}")
    tests = [test for name, test in vars(written).items() if name.startswith("test_")]
    assert len(tests) == 2
    for test in tests:
        test(**({"tmp_path": tmp_path / "run"} if "tmp_path" in inspect.signature(test).parameters else {}))


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "test_short.py").write_text("mine")
    assert main(["new", "reward", "short", "--folder", str(tmp_path)]) == 2
    assert "test_short.py already" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["test_short.py"]
    assert main(["new", "reward", "short", "--folder", str(tmp_path / "test_short.py" / "x")]) == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("rewards short", "Did you mean 'reward'"),
        ("reward", "Write: strop new"),
        ("method dpo", "There is a method 'dpo' already"),
        ("method online_dpo", "There is a method 'online-dpo' already"),
        ("reward 2fast", "cannot name a module"),
        ("reward class", "cannot name a module"),
        ("reward ../short", "cannot name a module"),
        ("reward json", "would hide the module 'json'"),
    ],
)
def test_names_are_checked(words: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                           capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["new", *words.split()]) == 2
    assert said in capsys.readouterr().err and not list(tmp_path.iterdir())
