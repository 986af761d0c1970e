"""Data files that are broken on purpose, made by rule: every column of every shape of rows times every wrong value, and
every kind of file times every kind of damage.

`broken_files(folder)` writes them and says of each what its error must name. Nothing here needs torch.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
OTHER = {"role": "assistant", "content": "b"}
GOOD: dict[str, tuple[str, dict[str, Any]]] = {
    "text": ("language_modeling", {"text": "the ant"}),
    "messages": ("language_modeling", {"messages": [USER, ANSWER]}),
    "tokens": ("language_modeling", {"input_ids": [1, 2, 3]}),
    "completion": ("prompt_completion", {"prompt": "the", "completion": " ant"}),
    "pair": ("preference", {"prompt": "the", "chosen": " ant", "rejected": " bee"}),
    "chat pair": ("preference", {"prompt": [USER], "chosen": [ANSWER], "rejected": [OTHER]}),
    "labelled": ("unpaired_preference", {"prompt": "the", "completion": " ant", "label": True}),
    "prompt": ("prompt_only", {"prompt": "the"}),
    "steps": ("stepwise", {"prompt": "the", "completions": ["a", "b"], "labels": [True, False]}),
}
"""A shape of rows: the kind of data it is for, and a row in order."""

_MESSAGES: dict[str, Any] = {
    "no messages": [],
    "messages of text": ["hello"],
    "a misspelt role": [{"role": "usr", "content": "x"}],
    "no role": [{"content": "x"}],
    "no content": [{"role": "user"}],
    "content None": [{"role": "assistant", "content": None}],
    "content number": [{"role": "assistant", "content": 7}],
    "an image": [{"role": "user", "content": [{"type": "image"}]}, ANSWER],
    "bad tool call": [USER, {"role": "assistant", "tool_calls": [{"function": {"arguments": "{x"}}]}],
}
_NO_TEXT: dict[str, Any] = {
    "None": None,
    "number": 3,
    "boolean": True,
    "NaN": float("nan"),
    "object": {"a": 1},
    "half a character": "\ud800",
}
_NO_LIST: dict[str, Any] = {"None": None, "number": 3, "text": "a", "object": {"a": 1}}
WRONG: dict[str, dict[str, Any]] = {
    "text": {**_NO_TEXT, "list": ["a"]},
    "messages": {**_NO_LIST, **_MESSAGES},
    "prompt": {**_NO_TEXT, **_MESSAGES},
    "completion": {**_NO_TEXT, **_MESSAGES, "no answer": [USER]},
    "chosen": {**_NO_TEXT, **_MESSAGES, "no answer": [USER]},
    "rejected": {**_NO_TEXT, **_MESSAGES, "no answer": [USER]},
    "label": {"None": None, "word": "good", "two": 2, "half": 0.5, "list": [True], "NaN": float("nan")},
    "completions": {**_NO_LIST, "numbers": [1, 2], "a None": ["a", None]},
    "labels": {**_NO_LIST, "too few": [True], "out of range": [2, 0], "words": ["good", "bad"], "a None": [None, 1]},
    "input_ids": {**_NO_LIST, "words": ["a"], "below zero": [1, -100], "fractions": [1.5], "unknown id": [1, 999_999]},
    "margin": {"word": "big", "NaN": float("nan"), "huge": 10**400, "list": [1.0]},
    "tools": {"number": 3, "broken JSON": "[{", "numbers": [3], "nested": "[" * 100_000},
    "chat_template_kwargs": {"number": 3, "text": "a", "list": [1]},
    "images": {"a list": ["x.png"]},
}
"""Column -> wrong values for it, by name."""
BESIDE = {"pair": ("margin", "images"), "messages": ("tools", "chat_template_kwargs")}
"""Columns that a shape may have beside those it needs."""
PLACE = 1
"""The broken row is the second of three."""


@dataclass(frozen=True)
class BrokenFile:
    """A broken file, the kind of data it is for, and texts that its error must hold."""

    name: str
    path: Path
    kind: str
    names: tuple[str, ...]
    column: str | None = None
    needs_tokenizer: bool = False  # only a tokenizer can tell that something is wrong


def broken_files(folder: Path) -> Iterator[BrokenFile]:
    """Write all broken files into `folder`, one after the other."""
    yield from broken_values(folder)
    yield from damaged_files(folder)
    yield from floods(folder)


def broken_values(folder: Path) -> Iterator[BrokenFile]:
    """Files of three rows of which the second has a wrong value, or lacks a column."""
    for shape, (kind, good) in GOOD.items():
        for column in (*good, *BESIDE.get(shape, ())):
            wrong = dict(WRONG[column])
            if shape == "chat pair" and column == "prompt":
                del wrong["None"]  # then the prompt is what the conversations share at their start
            for cause, value in wrong.items():
                rows = [good, {**good, column: value}, good]
                for suffix, write in WRITERS.items():
                    path = folder / f"{shape} {column} {cause}".replace(" ", "-")
                    path = path.with_name(path.name + suffix)
                    if not write(path, rows):
                        continue
                    place = f"line {PLACE + 1}" if suffix == ".jsonl" else f"row {PLACE}"
                    names = (path.name, place, *(() if cause == "half a character" else (f"column '{column}'",)))
                    yield BrokenFile(path.name, path, kind, names, column, needs_tokenizer=cause == "unknown id")
        yield from _missing_columns(folder, shape, kind, good)


def _missing_columns(folder: Path, shape: str, kind: str, good: dict[str, Any]) -> Iterator[BrokenFile]:
    for column in good:
        if len(good) == 1 or (shape.endswith("pair") and column == "prompt"):
            continue  # without it the rows are of another kind, or in order
        if shape == "labelled" and column == "label":
            continue
        path = folder / f"{shape} without {column}.jsonl".replace(" ", "-")
        write_jsonl(path, [good, {key: value for key, value in good.items() if key != column}, good])
        yield BrokenFile(path.name, path, kind, (path.name, f"line {PLACE + 1}", f"column '{column}'"), column)


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> bool:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return True


def write_json(path: Path, rows: list[dict[str, Any]]) -> bool:
    path.write_text(json.dumps(rows), encoding="utf-8")
    return True


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> bool:
    """Whether the rows fit into one table: a column has one type there."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        pq.write_table(pa.Table.from_pylist(rows), path)
    except (pa.ArrowException, TypeError, OverflowError, UnicodeEncodeError):
        return False
    return repr(pq.read_table(path).to_pylist()) == repr(rows)  # 1 and 1.5 become 1.0 and 1.5


WRITERS: dict[str, Callable[[Path, list[dict[str, Any]]], bool]] = {
    ".jsonl": write_jsonl,
    ".json": write_json,
    ".parquet": write_parquet,
}


def damaged_files(folder: Path) -> Iterator[BrokenFile]:
    """Files of every kind, each damaged in every way that it cannot survive."""
    for suffix, whole in whole_files().items():
        for cause, content, wanted in damages(suffix, whole):
            path = folder / f"{cause.replace(' ', '-')}{suffix}"
            path.write_bytes(content)
            kind = "language_modeling" if suffix == ".txt" else "preference"
            yield BrokenFile(path.name, path, kind, (path.name, wanted))


def whole_files() -> dict[str, bytes]:
    """Three good pairs as a file of every kind that can be read (text: three lines)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{**GOOD["pair"][1], "prompt": f"wörd {i}"} for i in range(3)]
    table = pa.Table.from_pylist(rows)
    parquet, stream, file = io.BytesIO(), io.BytesIO(), io.BytesIO()
    pq.write_table(table, parquet)
    for sink, open_sink in ((stream, pa.ipc.new_stream), (file, pa.ipc.new_file)):
        with open_sink(sink, table.schema) as writer:
            writer.write_table(table)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    return {
        ".jsonl": lines,
        ".json": json.dumps(rows, ensure_ascii=False).encode(),
        ".csv": _separated(rows, ","),
        ".tsv": _separated(rows, "\t"),
        ".txt": "one wörd\ntwo\nthree\n".encode(),
        ".parquet": parquet.getvalue(),
        ".arrow": stream.getvalue(),
        "-file.arrow": file.getvalue(),
    }


def floods(folder: Path) -> Iterator[BrokenFile]:
    """Files of kilobytes with one row: a list that is the same long text, gigabytes once unpacked."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    many, text = 4096, pa.array(["ant " * 2**18])
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * many, pa.int32()), text)
    runs = pa.RunEndEncodedArray.from_arrays(pa.array([many], pa.int32()), text)
    for name, values in (("texts.parquet", texts), ("texts.arrow", texts), ("runs.arrow", runs)):
        path = folder / f"a-flood-of-{name}"
        table = pa.table({"chosen": pa.ListArray.from_arrays(pa.array([0, many], pa.int32()), values)})
        if path.suffix == ".parquet":
            pq.write_table(table, path)
        else:
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table)
        yield BrokenFile(path.name, path, "preference", (path.name, "the same values again and again"))


def _separated(rows: list[dict[str, Any]], delimiter: str) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def damages(suffix: str, whole: bytes) -> Iterator[tuple[str, bytes, str]]:
    """Cause, content, and what the message must say."""
    binary = suffix.endswith((".parquet", ".arrow"))
    middle = whole.index("ö".encode()) if not binary else len(whole) // 2
    yield "empty", b"", "rows" if suffix in (".jsonl", ".txt") else "the file is empty"
    yield "packed", gzip.compress(whole, mtime=0), "gunzip"
    yield "packed and cut", gzip.compress(whole, mtime=0)[:30], "gunzip"
    yield "a zip", b"PK\x03\x04" + whole, "unzip"
    yield "a web page", b"<!DOCTYPE html>\n<html></html>\n", "web page"
    yield "a pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "git lfs pull"
    if binary:
        form = "Parquet" if suffix == ".parquet" else "Arrow"
        yield "other words", b"hello, I am text", f"not a readable {form} file"
        yield "first half", whole[:middle], f"not a readable {form} file"
        yield "without its end", whole[:-1] if suffix != ".arrow" else whole[:-40], f"not a readable {form} file"
        yield "zeros", bytes(len(whole)), f"not a readable {form} file"
        return
    yield "a mark only", b"\xef\xbb\xbf", "rows" if suffix in (".jsonl", ".txt") else "the file is empty"
    yield "a cut character", whole[: middle + 1] + whole[middle + 2 :], "not valid UTF-8"
    yield "latin", whole.decode().encode("latin-1"), "0xf6 is not valid UTF-8"
    yield "wide", whole.decode().encode("utf-16"), "UTF-16"
    yield "wide without a mark", whole.decode().encode("utf-16-le"), "UTF-16"
    yield "wider", whole.decode().encode("utf-32"), "UTF-32"
    yield "zeros", bytes(100), "zero byte"
    yield "a hole", whole[:middle] + bytes(50) + whole[middle + 2 :], "zero byte"
    yield "a table", b"PAR1" + whole, "Parquet file"
    if suffix != ".json":
        yield "old line ends", whole.replace(b"\n", b"\r"), "carriage returns"
    if suffix in (".jsonl", ".json"):
        yield "cut", whole[:-9], "not valid JSON"
        yield "deep", b'{"prompt":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"
        yield "a key twice", whole.replace(b'"rejected"', b'"chosen"'), "'chosen' twice"
        yield "a giant number", whole.replace(b'" ant"', b"1" * 5000), "thousands of digits"
        yield "a word", whole.replace(b'" ant"', b"undefined"), "not valid JSON"
    if suffix in (".csv", ".tsv"):
        yield "no rows", whole.split(b"\n")[0] + b"\n", "a header and no rows"
        yield "an open quote", whole + b'"', "unexpected end of data"
        yield "a cell too many", whole + (b"a,b,c,d\n" if suffix == ".csv" else b"a\tb\tc\td\n"), "line 5"
        yield "a column twice", whole.replace(b"rejected", b"chosen"), "'chosen' twice"
        yield "another separator", whole.replace(b"," if suffix == ".csv" else b"\t", b";"), "separated by ';'"
