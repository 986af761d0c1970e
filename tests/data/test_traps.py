"""Small files that could cost hours or all memory: a sentence in seconds; and broken lines beside wrong columns."""

from __future__ import annotations

import contextlib
import json
import re
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from strop.cli import main
from strop.data import arrow, chat, check_rows, load_rows, prepare
from strop.data.arrow import stream_parquet
from strop.data.arrow_sizes import unpacked_bytes
from strop.errors import ConfigError, DataError
from strop.testing.tokenizers import toy_tokenizer


def message_in_seconds(action: Any, error: type[Exception] = DataError) -> str:
    begin = time.monotonic()
    with pytest.raises(error) as caught:
        action()
    assert time.monotonic() - begin < 2
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


@pytest.mark.parametrize("streaming", [False, True])
def test_a_parquet_row_that_is_a_list_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streaming: bool
) -> None:
    """It is refused by the counts of its metadata: nothing is unpacked."""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["ant"], "ids": pa.array([[7] * 2_000_000])}), path, compression="zstd")
    monkeypatch.setattr(arrow, "UNPACKED_BYTES", 2**22)
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *_: pytest.fail("unpacked"))
    said = message_in_seconds(lambda: list(stream_parquet(path)) if streaming else load_rows(path))
    assert "times as many): the same values again and again" in said


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
