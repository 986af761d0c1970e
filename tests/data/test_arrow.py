"""Parquet, Arrow and `datasets`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.support.tokenizers import toy_tokenizer

from strop.data import arrow, prepare
from strop.data.load import load_rows
from strop.data.rows import Rows, RowStream
from strop.errors import DataError

ROWS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "id": 0},
    {
        "messages": [
            {"role": "user", "content": "c"},
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]},
        ],
        "id": 1,
    },
]
"""Rows whose messages have different keys: Arrow fills the holes with None."""


def test_parquet(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    rows = load_rows(tmp_path / "a.parquet")
    assert list(rows) == ROWS == [rows[0], rows[1]] and rows.where(1) == "a.parquet, row 1"


def test_a_large_parquet_file_is_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    made: list[Path] = []
    original = arrow.tempfile.mkstemp

    def watched(**kwargs: Any) -> tuple[int, str]:
        handle, name = original(dir=tmp_path, **kwargs)
        made.append(Path(name))
        return handle, name

    monkeypatch.setattr(arrow, "LARGE_FILE_BYTES", 0)
    monkeypatch.setattr(arrow.tempfile, "mkstemp", watched)
    rows = arrow.read_parquet(tmp_path / "a.parquet")
    assert list(rows) == ROWS and made[0].exists()
    del rows
    assert not made[0].exists()


@pytest.mark.parametrize("form", ["stream", "file"])
def test_arrow(tmp_path: Path, form: str) -> None:
    table = pa.Table.from_pylist(ROWS)
    new = pa.ipc.new_stream if form == "stream" else pa.ipc.new_file
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, new(sink, table.schema) as writer:
        writer.write_table(table)
    assert list(load_rows(tmp_path / "a.arrow")) == ROWS


def test_datasets(tmp_path: Path) -> None:
    data = datasets.Dataset.from_list(ROWS)
    for rows in (load_rows(data), load_rows(data.with_format("numpy"))):
        assert list(rows) == ROWS == [rows[0], rows[1]]
    assert list(load_rows(data.select([1]))) == ROWS[1:]
    assert list(load_rows(datasets.DatasetDict({"train": data, "test": data.select([0])}), split="test")) == ROWS[:1]
    stream = load_rows(data.to_iterable_dataset())
    assert isinstance(stream, RowStream) and list(stream) == list(stream) == ROWS
    data.save_to_disk(str(tmp_path / "saved"))
    assert list(load_rows(tmp_path / "saved")) == ROWS
    datasets.DatasetDict({"train": data, "test": data.select([0])}).save_to_disk(str(tmp_path / "splits"))
    assert list(load_rows(tmp_path / "splits", split="test")) == ROWS[:1]


def test_the_same_rows_give_the_same_trees_from_anywhere(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    tokenizer = toy_tokenizer("chatml_tools")
    sources = [ROWS, tmp_path / "a.parquet", datasets.Dataset.from_list(ROWS)]
    sets = [prepare(source, "language_modeling", tokenizer) for source in sources]
    assert [list(s) for s in sets[1:]] == [list(sets[0])] * 2
    assert len({s.report.fingerprint for s in sets}) == 1


def test_columns_of_one_name(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    for path in (tmp_path / "a.parquet", tmp_path / "a.arrow"):
        with pytest.raises(DataError, match="it has the column 'text' twice"):
            load_rows(path)


def test_values_without_a_counterpart(tmp_path: Path) -> None:
    """Dates beyond the year 9999 are a row's trouble, found when the row is read."""
    pq.write_table(
        pa.table({"text": ["a", "b"], "at": pa.array([0, 10**12], pa.timestamp("s"))}), tmp_path / "a.parquet"
    )
    rows = load_rows(tmp_path / "a.parquet")
    assert isinstance(rows, Rows) and rows[0]["text"] == "a"
    with pytest.raises(DataError, match=r"a\.parquet, row 1: a value has no counterpart in Python: .*Drop that column"):
        rows[1]
    with pytest.raises(DataError, match=r"a\.parquet, rows 0 to 1: a value has no counterpart"):
        list(rows)


CALLS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [
        {"function": {"name": "f", "arguments": {"x": 1}}}, {"function": {"name": "g", "arguments": {"y": "b"}}}]}]},
    {"messages": [{"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]},
]  # fmt: skip
"""Calls whose arguments have different keys, in lists within lists."""


class PolarsFrame:
    """What is used of a polars DataFrame: the project does without the package."""

    columns = ("messages",)

    def to_arrow(self) -> pa.Table:
        return pa.Table.from_pylist(CALLS)

    def to_dicts(self) -> list[dict[str, Any]]:
        return pa.Table.from_pylist(CALLS).to_pylist()

    def to_dict(self, *, as_series: bool = True) -> dict[str, Any]:
        return {}


def test_one_file_gives_one_text_by_whatever_it_is_read(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(CALLS), tmp_path / "a.parquet")
    assert list(load_rows(tmp_path / "a.parquet")) == CALLS
    pandas = pytest.importorskip("pandas")
    table = pq.read_table(tmp_path / "a.parquet")
    for source in (pandas.read_parquet(tmp_path / "a.parquet"), table, table.to_batches()[0], PolarsFrame()):
        assert list(load_rows(source)) == CALLS, type(source)


def test_what_a_script_wrote_into_a_frame_stays() -> None:
    pandas = pytest.importorskip("pandas")
    rows = [{"prompt": "a", "chat_template_kwargs": {"x": None}}, {"prompt": "b", "chat_template_kwargs": {"x": 1}}]
    assert list(load_rows(pandas.DataFrame(rows))) == rows


def test_a_format_that_converts_some_columns_shows_the_others_too() -> None:
    rows = [{"input_ids": [1, 2, 3], "completion_mask": [0, 0, 1]}]
    shown = datasets.Dataset.from_list(rows).with_format("numpy", columns=["input_ids"], output_all_columns=True)
    assert [sorted(row) for row in load_rows(shown)] == [["completion_mask", "input_ids"]]
    (example,) = prepare(shown, "language_modeling", toy_tokenizer("plain"))
    assert example.completions == [[3]]
    hidden = datasets.Dataset.from_list(rows).with_format("numpy", columns=["input_ids"])
    assert [list(row) for row in load_rows(hidden)] == [["input_ids"]]


@pytest.mark.parametrize("kind", ["numpy", "pandas", "arrow"])
def test_a_stream_in_a_format_gives_plain_rows(kind: str) -> None:
    stream = datasets.Dataset.from_list(ROWS).to_iterable_dataset().with_format(kind)
    rows = load_rows(stream)
    assert isinstance(rows, RowStream) and list(rows) == ROWS


def test_a_set_that_may_draw_at_random_is_read_once_and_it_is_said() -> None:
    class Drawn:
        reads = 0

        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> dict[str, str]:
            self.reads += 1
            return {"text": f"{index} {self.reads}"}

    rows = load_rows(Drawn())
    assert list(rows) == list(rows) and "was read once" in rows.notes[0]
