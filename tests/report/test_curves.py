import math
import random
import re
from xml.etree import ElementTree

import pytest

from strop.report.curves import Curve, chart, noisy, short, smooth, thin, ticks


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.6931, "0.6931"), (1234.5, "1234"), (12345, "12.3k"), (2.5e6, "2.5M"), (3e-05, "3e-5"),
     (-0.25, "-0.25"), (1.5e-4, "1.5e-4"), (0.001, "0.001"), (7e13, "70T")],
)  # fmt: skip
def test_short_numbers(value: float, text: str) -> None:
    assert short(value) == text


@pytest.mark.parametrize("scale", [1e-8, 1e-3, 1.0, 37.0, 1e9])
def test_ticks_are_few_round_and_inside(scale: float) -> None:
    rng = random.Random(0)
    for _ in range(200):
        low, high = sorted((rng.uniform(-scale, scale), rng.uniform(-scale, scale)))
        found = ticks(low, high)
        assert 2 <= len(found) <= 9
        assert all(low - 1e-9 * scale <= t <= high + 1e-9 * scale for t in found)
        step = found[1] - found[0]
        digit = step / 10 ** math.floor(math.log10(step) + 1e-9)
        assert min(abs(digit - d) for d in (1, 2, 2.5, 5)) < 1e-6


def test_smoothing_keeps_a_constant_and_calms_noise() -> None:
    assert smooth([(i, 3.0) for i in range(50)]) == [(i, pytest.approx(3.0)) for i in range(50)]
    rng = random.Random(0)
    noise = [(i, rng.gauss(0, 1)) for i in range(400)]
    spread = sum(y * y for _, y in smooth(noise)[50:]) / 350
    assert spread < 0.1
    assert noisy(noise) and not noisy([(i, i * i) for i in range(50)])


def test_thinning_keeps_ends_and_peaks() -> None:
    points = [(i, 0.0) for i in range(1000)]
    points[377], points[655] = (377, 9.0), (655, -9.0)
    kept = thin(points, 40)
    assert len(kept) <= 40
    assert kept == sorted(kept) and kept[0] == points[0] and kept[-1] == points[-1]
    assert (377, 9.0) in kept and (655, -9.0) in kept
    assert thin(points[:30], 40) == points[:30]


@pytest.mark.parametrize(
    "points",
    [
        [(5, 1.0)],
        [(1, 2.0), (2, 2.0)],
        [(0, 0.0), (10, 0.0)],
        [(i, -1e-9 * i) for i in range(300)],
        [(1, 1e30), (2, -1e30)],
    ],
)
def test_any_curve_becomes_valid_svg_inside_its_frame(points: list[tuple[float, float]]) -> None:
    svg = chart([Curve("train", points), Curve("eval", points[::7])], title='<a> & "b"', low=0.0, high=1.0)
    root = ElementTree.fromstring(svg)
    assert root.find("title").text == '<a> & "b"'
    assert "nan" not in svg and "inf" not in svg
    for element in root.iter():
        for name in ("x", "cx", "cy", "y"):
            assert -1 <= float(element.get(name, 0)) <= 401
        for number in re.findall(r"[ML ](-?[\d.]+)", element.get("d", "")):
            assert -1 <= float(number) <= 401


def test_points_lie_where_their_values_are() -> None:
    root = ElementTree.fromstring(chart([Curve("eval", [(0, 0.0), (50, 0.5), (100, 1.0)])], title="t"))
    dots = [(float(c.get("cx")), float(c.get("cy"))) for c in root.iter("circle") if c.get("class") is None]
    (x0, y0), (x1, y1), (x2, y2) = dots
    assert x1 == pytest.approx((x0 + x2) / 2, abs=0.2) and y1 == pytest.approx((y0 + y2) / 2, abs=0.2)
    assert x0 < x2 and y0 > y2, "larger values are higher up"


def test_the_healthy_band_is_drawn_only_where_it_is() -> None:
    points = [(i, 0.5 + 0.01 * i) for i in range(10)]
    assert 'class="band"' in chart([Curve("train", points)], title="t", low=0.52, high=0.56)
    assert 'class="band"' not in chart([Curve("train", points)], title="t", low=90, high=91)
    assert 'class="band"' not in chart([Curve("train", points)], title="t")


def test_hover_tells_step_and_value() -> None:
    svg = chart([Curve("train", [(10, 0.123456), (20, 0.5)]), Curve("eval", [(20, 0.7)])], title="t")
    assert "step 10: 0.12346" in svg and "step 20: 0.5  eval 0.7" in svg


def test_no_points_no_chart() -> None:
    assert chart([Curve("train", [])], title="t") == ""
