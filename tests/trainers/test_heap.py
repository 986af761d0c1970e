"""Freed memory stays with the process while a run on the CPU trains, and goes back afterwards."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import pytest
import torch

from strop.testing.cases import make_trainer, rows_for
from strop.trainers.heap import DEFAULT, KEEP, KeptHeap


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
def test_pages_are_not_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MALLOC_ARENA_MAX", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    heap = KeptHeap()
    if heap.libc is None:
        pytest.skip("no glibc, or its thresholds are set by the environment")

    def faults() -> int:
        torch.ones(12 << 20)  # a first one, so that the heap is large enough
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(4):
            torch.ones(12 << 20)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    given_back = faults()
    heap.on_train_begin(None, None, None)
    try:
        kept = faults()
    finally:
        heap.on_train_end(None, None, None)
    assert kept < given_back / 4
