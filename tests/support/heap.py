"""How often a process has to ask for pages that it had before, with and without `KeptHeap`."""

from __future__ import annotations

import resource
from pathlib import Path

import torch

from strop.engine.heap import KeptHeap


def faults() -> int:
    """Page faults of making and dropping one large tensor eight times, once the heap is large enough for it."""
    for _ in range(8):
        torch.ones(12 << 20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.ones(12 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def count_faults(into: str) -> None:
    """Whether there is a glibc to speak to, the faults before, and those while a run trains."""
    heap, given_back = KeptHeap(), faults()
    heap.on_train_begin(None, None, None)
    Path(into).write_text(f"{heap.libc is not None} {given_back} {faults()}")
