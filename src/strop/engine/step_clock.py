"""Where the time of an optimizer step goes, and the most memory that the process has held."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Iterator

import torch

from strop.records import Extreme, Mean

GIBIBYTE = 2**30


class StepClock:
    """Seconds of a step and of its named parts. A part that came once counts in every later step, if only with 0."""

    def __init__(self) -> None:
        self.begin = time.perf_counter()
        self.seconds: dict[str, float] = {}

    def start(self) -> None:
        """A step begins, with no second in any part: what an evaluation took in between is left out."""
        self.begin, self.seconds = time.perf_counter(), dict.fromkeys(self.seconds, 0.0)

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What is done inside belongs to this part of the step."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin

    def metrics(self) -> dict[str, Mean | Extreme]:
        """`step_time` and `PART_time` in seconds, `memory_peak` in GiB."""
        parts = {f"{name}_time": Mean(seconds, 1.0) for name, seconds in self.seconds.items()}
        whole = Mean(time.perf_counter() - self.begin, 1.0)
        return {"step_time": whole, **parts, "memory_peak": Extreme(peak_bytes() / GIBIBYTE)}


def peak_bytes() -> int:
    """The most bytes held so far: of tensors on an accelerator, else of the whole process."""
    if torch.cuda.is_available() and (tensors := torch.cuda.max_memory_allocated()):
        return int(tensors)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
