"""Numbers and curves as a reader likes them: short, thinned so that peaks stay, and the value a curve ended at."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Curve = NDArray[np.float64]
"""(points, 2): steps, in order, and values."""
MAX_POINTS = 1200
"""Most points kept of a curve: more than a chart has pixels across."""
LAST_SHARE = 0.1
"""Share of a curve's end that counts as 'now' where a value is compared with its healthy range."""


def thin(points: Curve, limit: int = MAX_POINTS) -> Curve:
    """At most `limit` points: the lowest and the highest of each stretch, in order, and the ends."""
    if len(points) <= limit:
        return points
    stretches = max(limit // 2 - 1, 1)
    kept = {0, len(points) - 1}
    for start, end in pairwise(i * len(points) // stretches for i in range(stretches + 1)):
        values = points[start:end, 1]
        kept |= {start + int(values.argmin()), start + int(values.argmax())}
    return points[sorted(kept)]


def short(value: float) -> str:
    """A number as a reader likes it: `0.693`, `12.4k`, `3e-05`."""
    size = abs(value)
    if size == 0:
        return "0"
    for bound, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= bound:
            scaled = value / (1e3 if letter == "k" else bound)
            return f"{scaled:.3g}{letter}"
    if size < 1e-3:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.4g}"


def recent(points: Curve) -> float:
    """Mean of the last tenth of a curve (at least its last point)."""
    last = points[-max(1, round(len(points) * LAST_SHARE)) :, 1].tolist()
    return sum(last) / len(last)


def duration(seconds: float) -> str:
    """`"42 s"`, `"3 min 20 s"`, `"2 h 05 min"`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
