"""Small files that could cost hours or all memory: a sentence in seconds; and broken lines beside wrong columns."""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import time
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from strop.cli import main
from strop.data import arrow, chat, check_rows, load_rows, prepare
from strop.data.arrow_sizes import unpacked_bytes
from strop.errors import ConfigError, DataError
from strop.testing.tokenizers import toy_tokenizer


def message_in_seconds(action: Any, error: type[Exception] = DataError) -> str:
    begin = time.process_time()
    with pytest.raises(error) as caught:
        action()
    assert time.process_time() - begin < 20  # of this process alone; what is meant takes hours
    assert len(str(caught.value)) < 3000
    return str(caught.value)


def test_a_key_that_is_there_twice_among_many(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("{" + ", ".join(f'"k{i}": 0' for i in range(30_000)) + ', "k29999": 1}')
    assert "the key 'k29999' twice" in message_in_seconds(lambda: load_rows(path))


@pytest.mark.parametrize("twice", [True, False])
def test_thousands_of_columns(tmp_path: Path, twice: bool) -> None:
    path = tmp_path / "a.csv"
    names = [f"promp{i}" for i in range(20_000)] + (["promp0"] if twice else [])
    path.write_text(",".join(names) + "\n" + ",".join("1" * len(names)) + "\n")
    said = message_in_seconds(lambda: check_rows(path, "preference"))
    assert ("the column 'promp0' twice" if twice else "and 19988 more") in said


@pytest.mark.parametrize("large", [False, True])
def test_a_parquet_file_that_unpacks_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: bool) -> None:
    monkeypatch.setattr(arrow, "UNPACKED_BYTES", 2**22)
    monkeypatch.setattr(arrow, "LARGE_FILE_BYTES", 0 if large else 2**28)
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": pa.array(["ant" * 50_000] * 2000)}), path, compression="zstd")
    said = message_in_seconds(lambda: load_rows(path))
    assert "times as many): the same values again and again" in said


def test_nothing_half_unpacked_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, table = tmp_path / "a.parquet", pa.table({"text": ["ant"]})
    pq.write_table(table, path)

    def batches(path: Path) -> Any:
        yield table.to_batches()[0]
        raise DataError("the disk is full")

    monkeypatch.setattr(arrow, "LARGE_FILE_BYTES", 0)
    monkeypatch.setattr(arrow, "_unpacked", batches)
    monkeypatch.setattr(arrow.tempfile, "tempdir", str(tmp_path))
    with pytest.raises(DataError, match="disk is full"):
        load_rows(path)
    assert [file.name for file in tmp_path.iterdir()] == ["a.parquet"]


def test_a_parquet_row_that_is_a_list_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused by the counts of its metadata: nothing is unpacked."""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["ant"], "ids": pa.array([[7] * 2_000_000])}), path, compression="zstd")
    monkeypatch.setattr(arrow, "UNPACKED_BYTES", 2**22)
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *_: pytest.fail("unpacked"))
    said = message_in_seconds(lambda: load_rows(path))
    assert "times as many): the same values again and again" in said


LONG, MANY = "ant" * 10_000, 600


def listed(values: Any) -> Any:
    """One row: the list of all values."""
    return pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values)


def spoken(values: Any) -> Any:
    """Messages whose contents are the values."""
    return pa.StructArray.from_arrays([pa.array(["user"] * len(values)), values], ["role", "content"])


@pytest.mark.parametrize("kind", ["texts", "mapped", "messages", "map", "deep", "categories", "differences"])
def test_a_parquet_row_of_one_long_text_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Its indices are counted before a text is unpacked."""
    texts, path = pa.array([LONG] * MANY), tmp_path / "a.parquet"
    column = {
        "texts": lambda: listed(texts),
        "mapped": lambda: listed(texts),
        "messages": lambda: listed(spoken(texts)),
        "map": lambda: pa.MapArray.from_arrays([0, MANY], pa.array(map(str, range(MANY))), texts),
        "deep": lambda: listed(listed(texts)),
        "categories": lambda: texts.dictionary_encode(),
        "differences": lambda: listed(texts),
    }[kind]()
    delta: Any = {"use_dictionary": False, "column_encoding": "DELTA_BYTE_ARRAY"} if kind == "differences" else {}
    pq.write_table(pa.table({"column": column}), path, compression="zstd", **delta)
    monkeypatch.setattr(arrow, "UNPACKED_BYTES", 2**22)
    if kind == "mapped":
        monkeypatch.setattr(arrow, "LARGE_FILE_BYTES", 0)
    before = pa.total_allocated_bytes()
    plain = pq.ParquetFile.iter_batches

    def counted(self: Any, *args: Any, **options: Any) -> Any:
        for batch in plain(self, *args, **options):
            assert batch.nbytes < 2**20, "unpacked"
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    said = message_in_seconds(lambda: load_rows(path))
    assert "times as many): the same values again and again" in said
    assert pa.total_allocated_bytes() - before < 2**22


def test_a_parquet_file_of_long_texts_that_differ_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"messages": [{"role": "user", "content": f"{i} {'ant ' * 50}"}] * 3} for i in range(300)]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=100)
    monkeypatch.setattr(
        arrow, "UNPACKED_BYTES", 2**19
    )  # less than the dictionaries could unpack to: they are looked at
    monkeypatch.setattr(arrow, "UNPACKED_RATIO", 0)
    assert list(load_rows(path)) == rows
    monkeypatch.setattr(arrow, "LARGE_FILE_BYTES", 0)
    assert list(load_rows(path)) == rows


@pytest.mark.parametrize("kind", ["list", "messages", "runs", "list of runs", "list view", "column", "nulls", "union"])
def test_arrow_values_that_are_stored_once_and_meant_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * MANY), pa.array([LONG]))
    runs = pa.RunEndEncodedArray.from_arrays(pa.array([MANY], pa.int32()), pa.array([LONG]))
    many = pa.array([0] * MANY, pa.int32())
    column = {
        "list": lambda: listed(texts),
        "messages": lambda: listed(spoken(texts)),
        "runs": lambda: runs,
        "list of runs": lambda: listed(runs),
        "list view": lambda: pa.ListViewArray.from_arrays(many, pa.array([1] * MANY, pa.int32()), pa.array([LONG])),
        "column": lambda: texts,
        "nulls": lambda: pa.nulls(2**20),
        "union": lambda: pa.UnionArray.from_dense(many.cast("int8"), many, [pa.array([LONG])]),
    }[kind]()
    table, path = pa.table({"column": column}), tmp_path / "a.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    monkeypatch.setattr(arrow, "UNPACKED_BYTES", 2**22)
    said = message_in_seconds(lambda: load_rows(path))
    assert ("union type" if kind == "union" else "the same values again and again") in said


def test_a_saved_dataset_that_unpacks_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets.Dataset.from_dict({"text": [LONG] * MANY}).save_to_disk(tmp_path / "saved")
    path = next((tmp_path / "saved").glob("*.arrow"))
    table, options = pa.ipc.open_stream(path.read_bytes()).read_all(), pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    assert len(load_rows(tmp_path / "saved")) == MANY, "18 MB are no flood"
    monkeypatch.setattr(arrow, "UNPACKED_BYTES", 2**22)
    assert "the same values again and again" in message_in_seconds(lambda: load_rows(tmp_path / "saved"))


@pytest.mark.parametrize("suffix", [".json.gz", ".csv.gz", ".jsonl.zst", ".zip", ".parquet.xz", ".bz2"])
def test_packed_files_are_not_unpacked(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(gzip.compress(b" " * 2**20))
    assert "Unpack it first" in message_in_seconds(lambda: load_rows(path))


@pytest.mark.parametrize("form", [pa.ipc.new_stream, pa.ipc.new_file], ids=["stream", "file"])
@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_an_arrow_file_that_unpacks_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: Any, codec: str
) -> None:
    """It is refused by what its messages say: nothing is unpacked."""
    kinds = pa.DictionaryArray.from_arrays(pa.array([0] * 200), pa.array(["b" * 90_000]))
    table = pa.table({"text": pa.array(["ant" * 50_000] * 200), "kind": kinds})
    path = tmp_path / "a.arrow"
    options = pa.ipc.IpcWriteOptions(compression=codec)
    with pa.OSFile(str(path), "wb") as sink, form(sink, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=100)
    assert unpacked_bytes(path) == pytest.approx(200 * 150_000 + 90_000, rel=1e-3)
    assert len(load_rows(path)) == 200, "30 MB are no flood"
    monkeypatch.setattr(arrow, "UNPACKED_BYTES", 2**22)
    monkeypatch.setattr(pa.ipc, "open_stream", None)
    assert "times as many): the same values again and again" in message_in_seconds(lambda: load_rows(path))


def test_an_arrow_file_that_says_too_little(tmp_path: Path) -> None:
    table = pa.table({"text": pa.array(["ant " * 100] * 20)})
    path = tmp_path / "a.arrow"
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    whole = path.read_bytes()
    for size in range(8, len(whole) - 8, 8):
        path.write_bytes(whole[:size])
        assert re.search("not a readable Arrow file|holds no rows", message_in_seconds(lambda: load_rows(path)))
    for place in range(8, len(whole), 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        with contextlib.suppress(DataError):
            list(load_rows(path))


def test_a_template_that_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "RENDER_S", 0.2)
    loop = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    rows = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
    tokenizer = toy_tokenizer("chatml", chat_template=loop)
    assert "it loops" in message_in_seconds(lambda: prepare(rows, "language_modeling", tokenizer), ConfigError)


def test_broken_lines_beside_wrong_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"frage": "q", "reply": "a"}) + "\n{broken\n")
    said = message_in_seconds(lambda: load_rows(path))
    assert "line 2, column 2: not valid JSON" in said and "no known columns either: found 'frage', 'reply'" in said
    path.write_text(json.dumps({"prompt": "q"}) + "\n{broken\n")
    assert "no known columns" not in message_in_seconds(lambda: load_rows(path))
    assert main(["check", str(path), "--method", "dpo"]) == 2
    said = capsys.readouterr().err
    assert "line 2, column 2: not valid JSON" in said and "preference data need the columns 'chosen'" in said
