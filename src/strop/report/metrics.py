"""The numbers that a run logged, metric by metric: taken in line by line, so that a long run needs little memory."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from itertools import groupby, islice
from math import isfinite
from typing import Any

import numpy as np

from strop.report.numbers import Curve
from strop.report.plain import clean, is_number

NOT_CURVES = ("step", "epoch", "total_flos", "train_*", "*_runtime", "*_per_second")
"""Keys (patterns) that are no curve: counters of progress, and numbers about the whole run or one evaluation."""
MOST_NAMES = 2000
"""Names that are kept; a file with another name in each line would fill the memory."""
BLOCK = 4096
"""Lines that are held as they are."""


def in_order(points: Curve) -> Curve:
    """By steps, with the last value that was given for a step: a run that was gone on with may say one again."""
    latest = points[::-1]
    return latest[np.unique(latest[:, 0], return_index=True)[1]]


class Metrics:
    """All that the lines of `metrics.jsonl` say. Values that are no finite numbers are left out."""

    def __init__(self, lines: Iterable[Mapping[str, Any]] = ()) -> None:
        """`lines` have a number as their step, if they have one. Neighbours mostly have the same names: a block of
        them is turned into columns at once."""
        self.curves: dict[str, Curve] = {}
        self.totals: dict[str, float] = {}  # of the whole training: `train_runtime`, `train_loss`, ...
        self.lines = self.last_step = 0
        self.ended = False  # a line about the whole training came after all lines of steps
        self.full = False  # there were more names than are kept
        columns: dict[str, tuple[array[float], array[float]]] = defaultdict(lambda: (array("d"), array("d")))
        self._columns = columns  # steps and values of each metric: 16 bytes a point, however few lines come at once
        self._metrics: dict[str, str] = {}  # name as it stands in the file -> its metric; empty where it is no curve
        for names, alike in groupby(lines, key=tuple):
            while block := list(islice(alike, BLOCK)):
                self._take(names, block)
        self.curves = {name: in_order(np.column_stack(found)) for name, found in self._columns.items()}
        self._columns.clear()

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
            if not values:
                continue
            if metric := self._metric(name):
                steps_before, values_before = self._columns[metric]
                steps_before.extend(known)
                values_before.extend(values)
            elif name in self._metrics and name.startswith("train_"):
                self.totals[clean(name)] = values[-1]

    def _metric(self, name: str) -> str:
        if name not in self._metrics:
            if len(self._metrics) == MOST_NAMES:
                self.full = True
                return ""
            key = clean(name)
            self._metrics[name] = "" if any(fnmatchcase(key, pattern) for pattern in NOT_CURVES) else key
        return self._metrics[name]
