"""Local text files: what is read, and that rows are found again by their offsets."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from strop.data.load import load_rows
from strop.data.rows import Rows
from strop.data.textfiles import LineRows
from strop.errors import DataError


def test_lines_are_read_in_any_order(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"text": f"{i} é ü\n{'x' * i}"} for i in range(50)]
    path.write_bytes(b"\xef\xbb\xbf" + b"\n\n".join(json.dumps(row, ensure_ascii=False).encode() for row in rows))
    found = load_rows(path)
    assert isinstance(found, Rows) and len(found) == 50 and list(found) == rows
    assert [found[i] for i in reversed(range(50))] == rows[::-1]
    assert found.where(3) == "a.jsonl, line 7"


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_line_ends(tmp_path: Path, end: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(f'{{"text": "a"}}{end}{{"text": "b"}}{end}'.encode())
    assert [row["text"] for row in load_rows(tmp_path / "a.jsonl")] == ["a", "b"]
    (tmp_path / "a.txt").write_bytes(f"one{end}{end}two".encode())
    found = load_rows(tmp_path / "a.txt")
    assert list(found) == [{"text": "one"}, {"text": "two"}] and found[1] == {"text": "two"}


def test_lines_survive_pickle_and_fork(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"n": 0}\n{"n": 1}\n')
    rows = LineRows(tmp_path / "a.jsonl")
    assert rows[1] == {"n": 1}
    assert pickle.loads(pickle.dumps(rows))[1] == {"n": 1}
    child = os.fork()
    if child == 0:
        os._exit(0 if [rows[i]["n"] for i in (1, 0)] == [1, 0] else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_file_that_changes_in_use(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "hello"}\n{"text": "world"}\n')
    rows = LineRows(path)
    path.write_text("x")
    with pytest.raises(DataError, match=r"line 2: .* changed while it was being used"):
        rows[1]


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ('[{"n": 0}, {"n": 1}]', [0, 1]),
        ('{"data": [{"n": 0}, {"n": 1}]}', [0, 1]),
        ('{"train": [{"n": 0}], "test": [{"n": 1}]}', [0]),
        ('{"n": 0}\n{"n": 1}\n', [0, 1]),
        ('{"n": 3}', [3]),
    ],
)
def test_json_of_every_shape(tmp_path: Path, content: str, wanted: list[int]) -> None:
    (tmp_path / "a.json").write_text(content)
    assert [row["n"] for row in load_rows(tmp_path / "a.json")] == wanted


def test_json_splits(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"train": [{"n": 0}], "test": [{"n": 1}]}')
    assert list(load_rows(tmp_path / "a.json", split="test")) == [{"n": 1}]


def test_csv(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    message = '[{"role": "user", "content": "q"}]'
    quoted = message.replace('"', '""')
    path.write_text(f'prompt,completion,label\n"a\nb",c,true\n"{quoted}","[x]",0\n\n', encoding="utf-8-sig")
    rows = load_rows(path)
    assert list(rows) == [
        {"prompt": "a\nb", "completion": "c", "label": "true"},
        {"prompt": json.loads(message), "completion": "[x]", "label": "0"},
    ]
    assert rows.where(0) == "a.csv, line 3" and rows.where(1) == "a.csv, line 4"
    (tmp_path / "a.tsv").write_text("text\tid\nx\t1\n")
    assert list(load_rows(tmp_path / "a.tsv")) == [{"text": "x", "id": "1"}]


def test_a_csv_cell_may_be_long(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\n" + "x" * 200_000 + "\n")
    assert len(load_rows(tmp_path / "a.csv")[0]["text"]) == 200_000


def test_a_csv_cell_that_is_nested_too_deeply_stays_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt\n" + "[" * 100_000 + "\n")
    assert load_rows(tmp_path / "a.csv")[0]["prompt"] == "[" * 100_000


def test_threads_and_forked_processes_read_rows_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"n": n, "text": "x" * (n % 97)}) + "\n" for n in range(500)))
    rows = load_rows(path)
    assert rows[0]["n"] == 0  # the file is open from here on

    def wrong(step: int) -> list[int]:
        return [n for n in (k * step % 500 for k in range(5000)) if rows[n]["n"] != n]

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(wrong, (3, 7, 11, 13))) == [[]] * 4
    with multiprocessing.get_context("fork").Pool(2) as processes:
        assert processes.map(rows.__getitem__, range(499, -1, -1)) == list(rows)[::-1]


@pytest.mark.parametrize(("name", "content", "line"), [("a.json", '[\n"ö"]', 2), ("a.csv", "prompt,ö\nx,y\n", 1)])
def test_a_byte_that_is_no_text_is_named_behind_a_mark_too(name: str, content: str, line: int, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content.encode("latin-1"))
    with pytest.raises(DataError, match=f"line {line}: byte 0xf6 is not valid UTF-8"):
        load_rows(tmp_path / name)
