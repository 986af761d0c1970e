"""Curves as inline SVG: no script, no image files; colours come from the page's style sheet, so dark mode applies.

A chart shows the raw points faintly with a smoothed line over them, evaluation points as dots joined by a line, and the
healthy range as a band. Hovering over a point shows step and value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

Point = tuple[float, float]

WIDTH, HEIGHT = 400, 180
LEFT, RIGHT, TOP, BOTTOM = 48, 10, 14, 24
MAX_POINTS = 160
"""Most points drawn per curve; longer ones are thinned so that peaks stay."""
SMOOTH_FROM = 24
"""Curves with fewer points are not smoothed."""


@dataclass(frozen=True)
class Curve:
    """One line of a chart. `kind` is its style class: "train" or "eval"."""

    kind: str
    points: Sequence[Point]


def chart(curves: Sequence[Curve], *, title: str, low: float | None = None, high: float | None = None) -> str:
    """One chart as an SVG element; `low` and `high` bound the healthy range where they are given."""
    curves = [curve for curve in curves if curve.points]
    if not curves:
        return ""
    scale = _Scale(curves, low, high)
    parts = [_band(scale, low, high), _axes(scale)]
    parts += [_curve(scale, curve) for curve in curves]
    parts += [_hover(scale, curves)]
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title, quote=True)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )


def smooth(points: Sequence[Point]) -> list[Point]:
    """Exponential moving average over a twentieth of the curve, without the usual pull of the first value."""
    keep = 1 - 1 / max(len(points) / 20, 1)
    total = weight = 0.0
    smoothed = []
    for x, y in points:
        total, weight = keep * total + y, keep * weight + 1
        smoothed.append((x, total / weight))
    return smoothed


def noisy(points: Sequence[Point]) -> bool:
    """Whether a curve goes up and down more than it goes anywhere: its total movement is over twice its range."""
    ys = [y for _, y in points]
    moved = sum(abs(b - a) for a, b in pairwise(ys))
    return moved > 2.2 * (max(ys) - min(ys))


def thin(points: Sequence[Point], limit: int = MAX_POINTS) -> list[Point]:
    """At most `limit` points: the lowest and the highest of each stretch, in order, and the ends."""
    if len(points) <= limit:
        return list(points)
    stretches = max(limit // 2 - 1, 1)
    kept = {0, len(points) - 1}
    for i in range(stretches):
        part = range(i * len(points) // stretches, (i + 1) * len(points) // stretches)
        kept |= {min(part, key=lambda k: points[k][1]), max(part, key=lambda k: points[k][1])}
    return [points[k] for k in sorted(kept)]


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` round numbers within [low, high]."""
    span = high - low
    if not span > 0 or not math.isfinite(span):
        return [low]
    raw = span / count
    size = 10.0 ** math.floor(math.log10(raw))
    step = next((m * size for m in (1, 2, 2.5, 5, 10) if m * size >= raw * 0.999), 10 * size)
    first = math.ceil(low / step - 1e-9)
    return [k * step + 0.0 for k in range(first, math.floor(high / step + 1e-9) + 1)]


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


class _Scale:
    """Maps steps and values to positions in the picture."""

    def __init__(self, curves: Sequence[Curve], low: float | None, high: float | None) -> None:
        xs = [x for curve in curves for x, _ in curve.points]
        ys = [y for curve in curves for _, y in curve.points]
        self.x0, self.x1 = min(xs), max(xs)
        if self.x0 == self.x1:
            self.x0, self.x1 = self.x0 - 1, self.x1 + 1
        bottom, top = min(ys), max(ys)
        span = (top - bottom) or abs(top) or 1.0
        for bound in (low, high):  # a healthy bound close by belongs in the picture
            if bound is not None and bottom - 0.5 * span <= bound <= top + 0.5 * span:
                bottom, top = min(bottom, bound), max(top, bound)
        pad = 0.06 * ((top - bottom) or abs(top) or 1.0)
        self.y0, self.y1 = bottom - pad, top + pad
        if bottom >= 0 > self.y0:
            self.y0 = 0.0

    def x(self, step: float) -> float:
        return LEFT + (step - self.x0) / (self.x1 - self.x0) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self.y0) / (self.y1 - self.y0) * (HEIGHT - TOP - BOTTOM)


def _band(scale: _Scale, low: float | None, high: float | None) -> str:
    if low is None and high is None:
        return ""
    bottom = max(scale.y0, low if low is not None else scale.y0)
    top = min(scale.y1, high if high is not None else scale.y1)
    if bottom >= top:
        return ""
    y, tall = scale.y(top), scale.y(bottom) - scale.y(top)
    box = f'<rect class="band" x="{LEFT}" y="{y:.1f}" width="{WIDTH - LEFT - RIGHT}" height="{tall:.1f}"/>'
    edges = [bound for bound in (low, high) if bound is not None and scale.y0 < bound < scale.y1]
    lines = (f'<path class="edge" d="M{LEFT} {scale.y(b):.1f}H{WIDTH - RIGHT}"/>' for b in edges)
    return box + "".join(lines)


def _axes(scale: _Scale) -> str:
    parts = []
    for value in ticks(scale.y0, scale.y1):
        y = scale.y(value)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 7}" y="{y + 3.5:.1f}" text-anchor="end">{short(value)}</text>')
    for value in ticks(scale.x0, scale.x1, 5):
        if value == int(value):
            x = scale.x(value)
            parts.append(f'<path class="grid" d="M{x:.1f} {HEIGHT - BOTTOM}v4"/>')
            parts.append(f'<text class="tick" x="{x:.1f}" y="{HEIGHT - 7}" text-anchor="middle">{short(value)}</text>')
    parts.append(f'<path class="axis" d="M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>')
    return "".join(parts)


def _curve(scale: _Scale, curve: Curve) -> str:
    points = thin(curve.points)
    if len(points) == 1 or curve.kind == "eval":
        dots = "".join(f'<circle cx="{scale.x(x):.1f}" cy="{scale.y(y):.1f}" r="2.6"/>' for x, y in points)
        return f'<g class="{curve.kind}">{_path(scale, points, "line")}{dots}</g>'
    if len(curve.points) < SMOOTH_FROM or not noisy(curve.points):
        return f'<g class="{curve.kind}">{_path(scale, points, "line")}</g>'
    soft = thin(smooth(curve.points))
    return f'<g class="{curve.kind}">{_path(scale, points, "raw")}{_path(scale, soft, "line")}</g>'


def _path(scale: _Scale, points: Sequence[Point], style: str) -> str:
    steps = "L".join(f"{scale.x(x):.1f} {scale.y(y):.1f}" for x, y in points)
    return f'<path class="{style}" d="M{steps}"/>'


def _hover(scale: _Scale, curves: Sequence[Curve]) -> str:
    """One invisible column per step; over it, a mark and the values of that step are shown."""
    values: dict[float, list[tuple[str, float]]] = {}
    for curve in curves:
        for x, y in thin(curve.points):
            values.setdefault(x, []).append((curve.kind, y))
    steps = sorted(values)
    parts = []
    for i, step in enumerate(steps):
        left = (scale.x(steps[i - 1]) + scale.x(step)) / 2 if i else float(LEFT)
        right = (scale.x(steps[i + 1]) + scale.x(step)) / 2 if i + 1 < len(steps) else float(WIDTH - RIGHT)
        marks = "".join(
            f'<circle class="mark {kind}" cx="{scale.x(step):.1f}" cy="{scale.y(y):.1f}" r="3.4"/>'
            for kind, y in values[step]
        )
        told = "  ".join(f"{'eval ' if kind == 'eval' else ''}{y:.5g}" for kind, y in values[step])
        text = f"step {step:g}: {told}"
        parts.append(
            f'<g class="spot"><rect x="{left:.1f}" y="{TOP}" width="{max(right - left, 1):.1f}" '
            f'height="{HEIGHT - TOP - BOTTOM}"/><path d="M{scale.x(step):.1f} {TOP}V{HEIGHT - BOTTOM}"/>{marks}'
            f'<text x="{WIDTH - RIGHT}" y="10" text-anchor="end">{escape(text)}</text></g>'
        )
    return "".join(parts)
