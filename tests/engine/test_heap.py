"""Freed memory stays with the process while a run on the CPU trains, and goes back afterwards."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from tests.support.heap import count_faults
from tests.support.processes import start

from strop.engine.heap import DEFAULT, KEEP, KeptHeap
from strop.testing.cases import make_trainer, rows_for


class Calls:
    """Stands in for the C library."""

    def __init__(self) -> None:
        self.made: list[tuple[int, ...]] = []

    def mallopt(self, parameter: int, value: int) -> int:
        self.made.append((parameter, value))
        return 1

    def malloc_trim(self, pad: int) -> int:
        self.made.append((pad,))
        return 1


def test_a_run_sets_the_thresholds_and_gives_them_back(tmp_path: Path) -> None:
    trainer = make_trainer("sft", tmp_path, rows=rows_for("sft", 4))
    (heap,) = [c for c in trainer.callback_handler.callbacks if isinstance(c, KeptHeap)]
    heap.libc = Calls()
    trainer.train()
    assert heap.libc.made == [*KEEP.items(), *DEFAULT.items(), (0,)]


def test_settings_of_the_environment_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000000")
    assert KeptHeap().libc is None


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_pages_are_not_asked_for_again(tmp_path: Path) -> None:
    """In a process of its own: only the main thread's heap can grow without end."""
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        pytest.skip("the heap is set up from outside")
    process = start(count_faults, str(tmp_path / "counts"))
    process.join(60)
    served, given_back, kept = (tmp_path / "counts").read_text().split()
    if served == "False":
        pytest.skip("no glibc")
    assert int(kept) < int(given_back) / 4
