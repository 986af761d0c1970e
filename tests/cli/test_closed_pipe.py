"""Whoever reads the output has enough, and goes: no verb answers with a traceback."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.support.broken_files import GOOD, write_jsonl

import strop
from strop.cli import main


@pytest.mark.parametrize("verb", ["check", "report"])
def test_a_reader_that_goes(verb: str, tmp_path: Path) -> None:
    file = "a.jsonl" if verb == "check" else "metrics.jsonl"
    write_jsonl(tmp_path / file, [GOOD["pair"][1] if verb == "check" else {"step": 1, "loss": 0.5}])
    what = tmp_path / file if verb == "check" else tmp_path
    command = f"set -o pipefail; {sys.executable} -m strop {verb} {what} | true"
    environment = {**os.environ, "PYTHONPATH": str(Path(strop.__file__).parents[1])}  # the source that is tested
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, env=environment)
    assert not done.stderr and done.returncode in (0, 1)


def output(file: Any, buffered: bool) -> io.TextIOWrapper:
    """Standard output as Python makes it, or as PYTHONUNBUFFERED has it, whose buffer holds nothing back."""
    return io.TextIOWrapper(open(file, "wb", buffering=-1 if buffered else 0), write_through=not buffered)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
@pytest.mark.parametrize("buffered", [True, False])
def test_an_output_without_room(
    buffered: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence, on the other stream."""
    write_jsonl(tmp_path / "a.jsonl", [GOOD["pair"][1]])
    with output("/dev/full", buffered) as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(["check", str(tmp_path / "a.jsonl")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("strop: standard output cannot be written: No space left on device.")
    assert said.count("\n") == 1


@pytest.mark.parametrize("buffered", [True, False])
def test_a_reader_that_is_gone(
    buffered: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(tmp_path / "a.jsonl", [GOOD["pair"][1]])
    reader, writer = os.pipe()
    os.close(reader)
    with output(writer, buffered) as gone:
        monkeypatch.setattr(sys, "stdout", gone)
        try:
            status: Any = main(["check", str(tmp_path / "a.jsonl")])
        except SystemExit as end:  # of rich, which met it first
            status = end.code
    assert status == 1
    assert not capsys.readouterr().err


def test_an_error_of_another_file_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(argv: list[str]) -> int:
        raise OSError(28, "No space left on device", "elsewhere")

    monkeypatch.setattr("strop.cli.doctor.run", fails)
    with pytest.raises(OSError, match="elsewhere"):
        main(["doctor"])
