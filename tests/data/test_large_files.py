"""Files larger than the memory that checking them may take: a process of its own tells how much it took at most."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

MEGABYTE = 2**20
ALLOWED = 8 * MEGABYTE
"""What may come on top of the bytes kept for each row: buffers, the report."""
BYTES_PER_ROW = 80
"""Offsets, line numbers, digests, flags: numbers in arrays, whatever the rows hold."""

STATUS = Path("/proc/self/status")
pytestmark = pytest.mark.skipif(not STATUS.exists(), reason="the peak of a process is read from /proc")

PEAK = """
import sys
from pathlib import Path
def peak():
    # Not getrusage: what it tells includes the process that started this one.
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
"""
CHECK = f"""{PEAK}
from strop.cli import main
print("status", main(["check", *sys.argv[1:]]), "peak", peak())
"""
PREPARE = f"""{PEAK}
from strop.data import prepare
from strop.testing.tokenizers import toy_tokenizer
data = prepare(sys.argv[1], "preference", toy_tokenizer())
first = data.report.tokenized
for index in range(0, len(data), max(len(data) // 100, 1)):
    data[index]
print("rows", len(data), "tokenised first", first, "then", data.report.tokenized, "peak", peak())
"""


def large_file(path: Path, rows: int, *, broken: bool = False) -> int:
    """Pairs of about a kilobyte each, none like another; `broken`: each has a margin that is another word."""
    filler = "the good ant saw the bad bee " * 16
    with path.open("w") as file:
        for number in range(rows):
            row = {"prompt": f"{number} {filler}", "chosen": f" {number} {filler}", "rejected": f" no {number}"}
            file.write(json.dumps(row | ({"margin": f"word {number}"} if broken else {})) + "\n")
    return path.stat().st_size


def peak(code: str, *arguments: str) -> tuple[int, str]:
    """The most memory that a process running `code` held (bytes), and what it printed."""
    run = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return int(run.stdout.split()[-1]), run.stdout + run.stderr


def growth(code: str, folder: Path, rows: int, *arguments: str, broken: bool = False) -> tuple[int, str]:
    """How much more memory `rows` rows take than ten; the file itself must be larger than what is allowed."""
    large_file(folder / "small.jsonl", 10, broken=broken)
    size = large_file(folder / "large.jsonl", rows, broken=broken)
    small, _ = peak(code, str(folder / "small.jsonl"), *arguments)
    large, said = peak(code, str(folder / "large.jsonl"), *arguments)
    print(f"{rows} rows, {size / MEGABYTE:.0f} MB: {(large - small) / MEGABYTE:.1f} MB more than ten rows")
    assert size > 2 * (ALLOWED + rows * BYTES_PER_ROW)
    assert large - small < ALLOWED + rows * BYTES_PER_ROW, f"{(large - small) / MEGABYTE:.1f} MB"
    return large, said


SIZES = pytest.mark.parametrize("rows", [24_000, pytest.param(1_000_000, marks=pytest.mark.slow)])


@SIZES
def test_checking(rows: int, tmp_path: Path) -> None:
    _, said = growth(CHECK, tmp_path, rows)
    assert "status 0" in said and f"{rows} rows of preference data" in said


@SIZES
def test_checking_rows_that_are_all_broken(rows: int, tmp_path: Path) -> None:
    _, said = growth(CHECK, tmp_path, rows, "--method", "dpo", broken=True)
    assert "status 2" in said and f"{rows} of {rows} rows cannot be used" in said and "other causes" in said


@SIZES
def test_preparing(rows: int, tmp_path: Path) -> None:
    """A tree is tokenised when it is asked for, so the first one comes at once."""
    _, said = growth(PREPARE, tmp_path, rows)
    assert re.search(rf"rows {rows} tokenised first 1 then 10[01] ", said), said
