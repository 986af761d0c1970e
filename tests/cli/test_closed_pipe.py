"""Whoever reads the output has enough, and goes: no verb answers with a traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.broken_files import GOOD, write_jsonl


@pytest.mark.parametrize("verb", ["check", "report"])
def test_a_reader_that_goes(verb: str, tmp_path: Path) -> None:
    file = "a.jsonl" if verb == "check" else "metrics.jsonl"
    write_jsonl(tmp_path / file, [GOOD["pair"][1] if verb == "check" else {"step": 1, "loss": 0.5}])
    what = tmp_path / file if verb == "check" else tmp_path
    command = f"set -o pipefail; {sys.executable} -m strop {verb} {what} | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert not done.stderr and done.returncode in (0, 1)
