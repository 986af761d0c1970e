"""The small interface behind which rows stand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from strop.data.rows import JoinedRows, ListRows, RowStream, choose_columns, plain
from strop.errors import DataError


def make(count: int, source: str = "rows") -> ListRows:
    return ListRows([{"n": i} for i in range(count)], source)


def test_indexing() -> None:
    rows = make(5)
    assert len(rows) == 5 and rows[1] == {"n": 1} and rows[-1] == {"n": 4}
    assert list(rows[1:4:2]) == [{"n": 1}, {"n": 3}]
    assert list(rows.select([4, 0])) == [{"n": 4}, {"n": 0}]
    for index in (5, -6):
        with pytest.raises(IndexError):
            rows[index]


def test_joined() -> None:
    rows = JoinedRows([make(2, "a"), make(3, "b")])
    assert [row["n"] for row in rows] == [0, 1, 0, 1, 2] == [rows[i]["n"] for i in range(5)]
    assert rows.where(1) == "a, row 1" and rows.where(4) == "b, row 2" and rows.source == "a, b"


def test_selected_rows_keep_their_place() -> None:
    assert make(5).select([3, 1]).where(0) == "rows, row 3"


def test_map() -> None:
    rows = make(2).map(lambda row: {"m": row["n"] + 1})
    assert list(rows) == [{"m": 1}, {"m": 2}] == [rows[0], rows[1]]
    with pytest.raises(DataError, match="row 0: the function that changes rows returned a int"):
        list(make(1).map(lambda row: 3))  # type: ignore[arg-type, return-value]


def test_stream() -> None:
    stream = RowStream(lambda: iter([{"n": 0}, {"n": 1}]))
    assert list(stream) == list(stream) == [{"n": 0}, {"n": 1}]
    assert list(stream.map(lambda row: {"m": row["n"]})) == [{"m": 0}, {"m": 1}]


def test_choose_columns() -> None:
    row = {"question": "q", "answer": "a", "prompt": "old", "id": 1}
    assert choose_columns({"question": "prompt", "nothing": "x"})(row) == {"answer": "a", "id": 1, "prompt": "q"}
    assert choose_columns(["id", "question", "nothing"])(row) == {"id": 1, "question": "q"}


@pytest.mark.parametrize(
    ("value", "wanted"),
    [(np.bool_(True), True), (np.float32(0.5), 0.5), (np.array([1, 2]), [1, 2]), ("a", "a"), (None, None), ([1], [1])],
)
def test_plain(value: Any, wanted: Any) -> None:
    assert plain(value) == wanted and type(plain(value)) is type(wanted)
