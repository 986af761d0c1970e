"""The small interface behind which rows stand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from strop.data import load_rows
from strop.data.rows import JoinedRows, ListRows, RowStream, plain


def make(count: int, source: str = "rows") -> ListRows:
    return ListRows([{"n": i} for i in range(count)], source)


def test_indexing() -> None:
    rows = make(5)
    assert len(rows) == 5 and rows[1] == {"n": 1} and rows[-1] == {"n": 4}
    assert list(rows[1:4:2]) == [{"n": 1}, {"n": 3}]
    for index in (5, -6):
        with pytest.raises(IndexError):
            rows[index]


def test_joined() -> None:
    rows = JoinedRows([make(2, "a"), make(3, "b")])
    assert [row["n"] for row in rows] == [0, 1, 0, 1, 2] == [rows[i]["n"] for i in range(5)]
    assert rows.where(1) == "a, row 1" and rows.where(4) == "b, row 2" and rows.source == "a, b"


def test_map() -> None:
    rows = make(2).map(lambda row: {"m": row["n"] + 1})
    assert list(rows) == [{"m": 1}, {"m": 2}] == [rows[0], rows[1]]


def test_stream() -> None:
    stream = RowStream(lambda: iter([{"n": 0}, {"n": 1}]))
    assert list(stream) == list(stream) == [{"n": 0}, {"n": 1}]
    assert list(stream.map(lambda row: {"m": row["n"]})) == [{"m": 0}, {"m": 1}]


def test_columns_are_renamed_or_kept() -> None:
    rows = [{"question": "q", "answer": "a", "prompt": "old", "id": 1}, {"answer": "b"}]
    assert list(load_rows(rows, columns={"question": "prompt"})) == [
        {"answer": "a", "id": 1, "prompt": "q"},
        {"answer": "b", "prompt": None},
    ]
    assert list(load_rows(rows, columns=["id", "question"])) == [{"id": 1, "question": "q"}, {}]


@pytest.mark.parametrize(
    ("value", "wanted"),
    [(np.bool_(True), True), (np.float32(0.5), 0.5), (np.array([1, 2]), [1, 2]), ("a", "a"), (None, None), ([1], [1])],
)
def test_plain(value: Any, wanted: Any) -> None:
    assert plain(value) == wanted and type(plain(value)) is type(wanted)
