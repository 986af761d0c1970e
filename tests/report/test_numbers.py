import numpy as np
import pytest

from strop.report.numbers import duration, recent, short, thin


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.6931, "0.6931"), (1234.5, "1234"), (12345, "12.3k"), (2.5e6, "2.5M"), (3e-05, "3e-5"),
     (-0.25, "-0.25"), (1.5e-4, "1.5e-4"), (0.001, "0.001"), (7e13, "70T")],
)  # fmt: skip
def test_short_numbers(value: float, text: str) -> None:
    assert short(value) == text


def test_thinning_keeps_ends_and_peaks() -> None:
    points = np.array([(i, 0.0) for i in range(1000)])
    points[377, 1], points[655, 1] = 9.0, -9.0
    kept = thin(points, 40).tolist()
    assert len(kept) <= 40
    assert kept == sorted(kept) and kept[0] == [0, 0] and kept[-1] == [999, 0]
    assert [377, 9.0] in kept and [655, -9.0] in kept
    assert (thin(points[:30], 40) == points[:30]).all()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.42, "0.4 s"), (42, "42 s"), (59.7, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_recent_is_the_last_tenth() -> None:
    assert recent(np.array([(i, i) for i in range(20)])) == 18.5
    assert recent(np.array([(1, 4.0)])) == 4.0
