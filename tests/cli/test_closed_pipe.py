"""Whoever reads the output has enough, and goes: no verb answers with a traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.broken_files import GOOD, write_jsonl

from strop.cli import main


@pytest.mark.parametrize("verb", ["check", "report"])
def test_a_reader_that_goes(verb: str, tmp_path: Path) -> None:
    file = "a.jsonl" if verb == "check" else "metrics.jsonl"
    write_jsonl(tmp_path / file, [GOOD["pair"][1] if verb == "check" else {"step": 1, "loss": 0.5}])
    what = tmp_path / file if verb == "check" else tmp_path
    command = f"set -o pipefail; {sys.executable} -m strop {verb} {what} | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert not done.stderr and done.returncode in (0, 1)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
def test_an_output_without_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence, on the other stream."""
    write_jsonl(tmp_path / "a.jsonl", [GOOD["pair"][1]])
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(["check", str(tmp_path / "a.jsonl")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("strop: standard output cannot be written: No space left on device.")
    assert said.count("\n") == 1


def test_an_error_of_another_file_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(argv: list[str]) -> int:
        raise OSError(28, "No space left on device", "elsewhere")

    monkeypatch.setattr("strop.cli.doctor.run", fails)
    with pytest.raises(OSError, match="elsewhere"):
        main(["doctor"])
