"""Where the time of an optimizer step goes, how long a run takes, and the most memory that the process has held."""

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


class RunClock:
    """Seconds of the training and of the last evaluation, by a clock that nobody sets."""

    ROUNDED_S = 1.0
    """Two clocks that differ by more, and by more than a hundredth, have run apart."""

    def __init__(self) -> None:
        self.began: dict[str, float] = {}

    def start(self, name: str) -> None:
        self.began[name] = time.perf_counter()

    def correct(self, logs: dict[str, float]) -> None:
        """Put right the seconds that the parent measured by the clock on the wall, if that was set meanwhile.

        `logs` is changed in place. What the parent then says of a second is wrong too, and is taken out.
        """
        for key in [key for key in logs if key.endswith("_runtime")]:
            name = key.removesuffix("_runtime")
            begin = self.began.get("train" if name == "train" else "eval")
            seconds = None if begin is None else time.perf_counter() - begin
            if seconds is not None and abs(logs[key] - seconds) > max(self.ROUNDED_S, 0.01 * seconds):
                logs[key] = round(seconds, 4)
                for rate in [other for other in logs if other.startswith(name) and other.endswith("_per_second")]:
                    del logs[rate]


def peak_bytes() -> int:
    """The most bytes held so far: of tensors on an accelerator, else of the whole process."""
    if torch.cuda.is_available() and (tensors := torch.cuda.max_memory_allocated()):
        return int(tensors)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
