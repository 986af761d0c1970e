"""The numbers that a run logged, metric by metric: taken in line by line, so that a long run needs little memory."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import groupby, islice
from math import isfinite
from typing import Any, overload

from strop.report.numbers import Point
from strop.report.plain import clean, is_number

NOT_CURVES = ("step", "epoch", "total_flos", "train_*", "*_runtime", "*_per_second")
"""Keys (patterns) that are no curve: counters of progress, and numbers about the whole run or one evaluation."""
MOST_NAMES = 2000
"""Names that are kept; a file with another name in each line would fill the memory."""
BLOCK = 4096
"""Lines that are held as they are."""


class Series(Sequence[Point]):
    """(step, value) points in order of steps, 16 bytes each."""

    def __init__(self, points: Mapping[float, float] | None = None) -> None:
        steps = sorted(points or {})
        self.steps, self.values = array("d", steps), array("d", [(points or {})[step] for step in steps])

    def in_order(self) -> Series:
        """Sorted, with the last value that was given for a step: a run that was gone on with may say one again."""
        rising = all(map(float.__lt__, self.steps, self.steps[1:]))
        return self if rising else Series(dict(zip(self.steps, self.values, strict=True)))

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[Point]:
        return zip(self.steps, self.values, strict=True)

    @overload
    def __getitem__(self, place: int) -> Point: ...
    @overload
    def __getitem__(self, place: slice) -> list[Point]: ...
    def __getitem__(self, place: int | slice) -> Point | list[Point]:
        if isinstance(place, slice):
            return list(zip(self.steps[place], self.values[place], strict=True))
        return self.steps[place], self.values[place]


class Metrics:
    """All that the lines of `metrics.jsonl` say. Values that are no finite numbers are left out."""

    def __init__(self, lines: Iterable[Mapping[str, Any]] = ()) -> None:
        """`lines` have a number as their step, if they have one. Neighbours mostly have the same names: a block of
        them is turned into columns at once."""
        self.curves: dict[str, Series] = {}
        self.totals: dict[str, float] = {}  # of the whole training: `train_runtime`, `train_loss`, ...
        self.lines = self.last_step = 0
        self.ended = False  # a line about the whole training came after all lines of steps
        self.full = False  # there were more names than are kept
        self._metrics: dict[str, str] = {}  # name as it stands in the file -> its metric; empty where it is no curve
        for names, alike in groupby(lines, key=tuple):
            while block := list(islice(alike, BLOCK)):
                self._take(names, block)
        self.curves = {name: curve.in_order() for name, curve in self.curves.items() if curve.steps}

    def _take(self, names: tuple[str, ...], block: list[Mapping[str, Any]]) -> None:
        steps = array("d", [line.get("step", 0) for line in block])
        self.lines += len(block)
        self.ended = "train_runtime" in names or (self.ended and "loss" not in names)
        self.last_step = max(self.last_step, int(max(steps)))
        for name in names:
            known, values = steps, [line[name] for line in block]
            if set(map(type, values)) != {float} or not all(map(isfinite, values)):
                places = [place for place, value in enumerate(values) if is_number(value)]
                known, values = array("d", [steps[i] for i in places]), [values[i] for i in places]
            if metric := self._metric(name):
                curve = self.curves.setdefault(metric, Series())
                curve.steps.extend(known)
                curve.values.extend(values)
            elif values and name in self._metrics and name.startswith("train_"):
                self.totals[clean(name)] = values[-1]

    def _metric(self, name: str) -> str:
        if name not in self._metrics:
            if len(self._metrics) == MOST_NAMES:
                self.full = True
                return ""
            key = clean(name)
            self._metrics[name] = "" if any(fnmatchcase(key, pattern) for pattern in NOT_CURVES) else key
        return self._metrics[name]
