"""Findings read well and are counted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from strop.data.findings import Finding, Problems, RowProblem, kind_of_value


def test_a_finding_is_a_sentence() -> None:
    finding = Finding(3, "chosen", "error", "is None", "Write text", "a.jsonl, line 4")
    assert str(finding) == "a.jsonl, line 4, column 'chosen': is None. Write text"
    assert str(Finding(3, None, "info", "2 rows are odd (rows 3, 5)")) == "2 rows are odd (rows 3, 5)"
    assert str(Finding(None, "label", "info", "is odd")) == "column 'label': is odd"
    assert finding.to_dict()["place"] == "a.jsonl, line 4"


def test_causes_are_counted_beyond_the_first_twenty() -> None:
    problems = Problems("a.jsonl")
    for row in range(25):
        problems.add(row, f"a.jsonl, line {row + 1}", RowProblem("x" if row % 5 else "y", "is None"))
    text = str(problems.error(30))
    assert text.startswith("a.jsonl: 25 of 30 rows cannot be used") and "... and 5 more" in text
    assert "20 x column 'x': is None" in text and "5 x column 'y': is None" in text


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (None, "None"),
        (True, "the boolean True"),
        (3, "the number 3"),
        (float("nan"), "NaN (an empty cell?)"),
        ("x" * 50, "the string 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx'..."),
        (b"x", "bytes"),
        ([], "an empty list"),
        ([1], "a list of int"),
        ({"a": 1}, "an object with keys ['a']"),
        (np.int64(3), "a int64"),
    ],
)
def test_values_have_friendly_names(value: Any, wanted: str) -> None:
    assert kind_of_value(value) == wanted
