"""Broken data of every kind: one designed message with file, row, column, cause and fix, and no foreign traceback."""

from __future__ import annotations

import json
import subprocess
import sys
import traceback
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from strop.data import TokenizeOptions, check_rows, load_rows
from strop.data.checks import ENOUGH_WITHOUT_COLUMNS
from strop.errors import DataError

GOOD_PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}
USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def write(path: Path, content: Any) -> Path:
    """A file of bytes, of text, or of rows as JSON Lines."""
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    return path


def message_of(path: Path, kind: str | None, **options: Any) -> str:
    """The message of the `DataError` that a file gives; it must come from strop alone."""
    with pytest.raises(DataError) as caught:
        check_rows(load_rows(path), kind, TokenizeOptions(**options))
    shown = "".join(traceback.format_exception(caught.value))
    assert "site-packages" not in shown and "json/decoder" not in shown and "During handling" not in shown
    return str(caught.value)


def chat(*messages: Any) -> dict[str, Any]:
    return {"messages": list(messages)}


FILES: dict[str, tuple[str, Any, str | None, list[str]]] = {
    # --- the file itself
    "empty": ("a.jsonl", b"", "preference", ["a.jsonl", "no rows"]),
    "blank lines only": ("a.jsonl", b"\n\n  \n", "preference", ["no rows"]),
    "single quotes": ("a.jsonl", "{'prompt': 1}\n", None, ["line 1, column 2", "printed Python dict", "json.dumps"]),
    "trailing comma": ("a.jsonl", '{"text": "a"}\n{"text": "b",}\n', None, ["line 2, column 14", "not valid JSON"]),
    "cut off": ("a.jsonl", '{"text": "a"}\n{"text": "b', None, ["line 2", "Unterminated string"]),
    "two objects in a line": ("a.jsonl", '{"text": "a"}{"text": "b"}\n', None, ["line 1", "line of its own"]),
    "a list in a line": ("a.jsonl", '["a"]\n', None, ["line 1", "JSON array, not an object"]),
    "a number in a line": ("a.jsonl", "3\n", None, ["JSON number, not an object"]),
    "an array over lines": ("a.jsonl", '[\n{"text": "a"},\n{"text": "b"}\n]\n', None, ["belongs in a .json file"]),
    "a raw tab": ("a.jsonl", '{"text": "a\tb"}\n', None, ["line 1", "Escape line breaks and tabs"]),
    "bad byte": (
        "a.jsonl",
        b'{"text": "a"}\n{"text": "caf\xe9"}\n',
        None,
        ["line 2, column 14", "0xe9", "not valid UTF-8"],
    ),
    "UTF-16": ("a.jsonl", '{"text": "a"}\n'.encode("utf-16"), None, ["UTF-16", "iconv"]),
    "too deep": ("a.jsonl", '{"text": ' + "[" * 100_000 + "]" * 100_000 + "}\n", None, ["nested too deeply"]),
    "json: a string": ("a.json", '"hello"', None, ["a JSON string, no rows"]),
    "json: empty array": ("a.json", "[]", None, ["an empty array, no rows"]),
    "json: mixed array": (
        "a.json",
        '[{"text": "a"}, 3, "b"]',
        None,
        ["2 rows are not objects", "row 1: a JSON number"],
    ),
    "json: damaged": ("a.json", '[{"text": "a"},\n {"text": }]', None, ["line 2, column 11", "not valid JSON"]),
    "json: bad byte": ("a.json", b'[\n{"text": "\xff"}]', None, ["line 2", "0xff"]),
    "csv: empty": ("a.csv", "", None, ["the file is empty"]),
    "csv: header only": ("a.csv", "prompt,completion\n", None, ["a header and no rows"]),
    "csv: too many cells": ("a.csv", "text\na\nb,c\n", None, ["line 3", "2 cells, but the header names 1"]),
    "csv: column twice": ("a.csv", "text,text\na,b\n", None, ["line 1", "'text' twice"]),
    "csv: nameless column": ("a.csv", "text,\na,b\n", None, ["a column without a name"]),
    "csv: open quote": ("a.csv", 'text\n"a\n', None, ["unexpected end of data"]),
    "csv: bad byte": ("a.csv", b"text\ncaf\xe9\n", None, ["line 2", "0xe9"]),
    "tsv: commas": ("a.tsv", "prompt,completion\na,b\n", "prompt_completion", ["'prompt,completion'"]),
    "parquet: not one": ("a.parquet", b"hello, I am text", None, ["not a readable Parquet file"]),
    "parquet: empty": ("a.parquet", b"", None, ["the file is empty"]),
    "arrow: not one": ("a.arrow", b"hello, I am text", None, ["not a readable Arrow file"]),
    "unknown suffix": ("a.xlsx", b"PK", None, ["'.xlsx' cannot be read", ".jsonl"]),
    "packed": ("a.jsonl.gz", b"\x1f\x8b", None, ["gunzip"]),
    # --- columns
    "columns of another method": (
        "a.jsonl",
        [{"prompt": "p", "completion": "c", "label": True}] * 2,
        "preference",
        [
            "preference data need the columns 'chosen' and 'rejected'",
            "found 'prompt', 'completion', 'label'",
            "KTO or BCO",
        ],
    ),
    "unknown columns": (
        "a.jsonl",
        [{"question": "q", "reply": "a"}],
        "prompt_completion",
        ['columns="prompt=question,completion=reply"'],
    ),
    "capital letters": ("a.jsonl", [{"Prompt": "q", "Completion": "a"}], None, ["prompt=Prompt"]),
    "a column missing in one row": (
        "a.jsonl",
        [GOOD_PAIR, {"prompt": "p", "chosen": "a"}],
        "preference",
        ["1 of 2 rows", "a.jsonl, line 2, column 'rejected': is missing", "skip_bad_rows"],
    ),
    "kinds mixed": ("a.jsonl", [GOOD_PAIR, {"text": "t"}], None, ["1 preference (first: row 0)", "first: row 1"]),
    # --- values
    "None": ("a.jsonl", [GOOD_PAIR, {**GOOD_PAIR, "chosen": None}], "preference", ["line 2, column 'chosen': is None"]),
    "a number": ("a.jsonl", [{"text": 3}], "language_modeling", ["column 'text': is the number 3, not a string"]),
    "NaN": ("a.jsonl", '{"text": NaN}\n', "language_modeling", ["is NaN (an empty cell?)"]),
    "a list of strings": ("a.jsonl", [{"prompt": ["a"]}], "prompt_only", ["is a list of str", "list of messages"]),
    "half a character": ("a.jsonl", '{"text": "\\ud800"}\n', "language_modeling", ["half of a character"]),
    "label is a word": (
        "a.jsonl",
        [{"prompt": "p", "completion": "c", "label": "good"}],
        "unpaired_preference",
        ["column 'label': is the string 'good'", "true (desirable)"],
    ),
    "label is None": (
        "a.jsonl",
        [{"prompt": "p", "completion": "c", "label": None}],
        "unpaired_preference",
        ["column 'label': is None"],
    ),
    "margin is a word": ("a.jsonl", [{**GOOD_PAIR, "margin": "big"}], "preference", ["'margin': is the string 'big'"]),
    "margin is NaN": ("a.jsonl", '{"chosen":"a","rejected":"b","margin":NaN}\n', "preference", ["'margin': is NaN"]),
    "no question in common": (
        "a.jsonl",
        [{"chosen": [ANSWER], "rejected": [{**ANSWER, "content": "b"}]}],
        "preference",
        ["column 'chosen': has no first message in common with 'rejected'", "add a 'prompt' column"],
    ),
    "columns under one object": (
        "a.json",
        json.dumps({"prompt": ["a", "b"], "completion": ["c", "d"]}),
        None,
        ["an object of columns (prompt, completion)", "array of rows"],
    ),
    "images": ("a.jsonl", [{**GOOD_PAIR, "images": ["x"]}], "preference", ["column 'images'", "trains on text"]),
    "pixels": (
        "a.jsonl",
        [{**GOOD_PAIR, "pixel_values": [[0.5]]}],
        "preference",
        ["column 'pixel_values'", "trains on text"],
    ),
    # --- messages
    "no message": ("a.jsonl", [chat()], "language_modeling", ["column 'messages': is an empty list of messages"]),
    "unknown role": (
        "a.jsonl",
        [chat({"role": "usr", "content": "x"})],
        None,
        ["unknown role 'usr'", "Did you mean 'user'?"],
    ),
    "no role": ("a.jsonl", [chat({"content": "x"})], None, ["message 0 has no role"]),
    "no content": ("a.jsonl", [chat(USER, {"role": "assistant"})], None, ["message 1 has no content"]),
    "content is a number": ("a.jsonl", [chat({"role": "user", "content": 3})], None, ["the number 3 as its content"]),
    "an image part": (
        "a.jsonl",
        [chat({"role": "user", "content": [{"type": "image", "url": "x"}]})],
        None,
        ["a part of type 'image'", "trains on text"],
    ),
    "a message is a string": ("a.jsonl", [chat(USER, "hello")], None, ["message 1 is the string 'hello'"]),
    "messages as JSON text": ("a.jsonl", [{"messages": json.dumps([USER])}], None, ["json.loads"]),
    "messages is an object": (
        "a.jsonl",
        [{"messages": {"a": 1}}],
        None,
        ["is an object with keys ['a'], not messages"],
    ),
    "unknown speaker": (
        "a.jsonl",
        [{"conversations": [{"from": "humn", "value": "x"}]}],
        None,
        ["unknown speaker 'humn'", "Did you mean 'human'?"],
    ),
    "no answer": (
        "a.jsonl",
        [{"prompt": "p", "completion": [USER]}],
        None,
        ["'completion': holds no assistant message"],
    ),
    "begins with the answer": ("a.jsonl", [chat(ANSWER)], "prompt_completion", ["begins with the answer"]),
    "tools are broken": ("a.jsonl", [{**chat(USER), "tools": "[{"}], None, ["column 'tools': is not valid JSON"]),
    "tools hold a number": ("a.jsonl", [{**chat(USER), "tools": [3]}], None, ["tool 0 is the number 3"]),
    "tool call arguments": (
        "a.jsonl",
        [chat({"role": "assistant", "tool_calls": [{"function": {"arguments": "{x"}}]})],
        None,
        ["tool-call arguments that are not JSON"],
    ),
    "template variables": ("a.jsonl", [{**chat(USER), "chat_template_kwargs": 3}], None, ["'chat_template_kwargs'"]),
    # --- steps, ids
    "steps and labels differ": (
        "a.jsonl",
        [{"prompt": "p", "completions": ["a", "b"], "labels": [True]}],
        "stepwise",
        ["column 'labels': has 1 labels for 2 steps"],
    ),
    "step label out of range": (
        "a.jsonl",
        [{"prompt": "p", "completions": ["a"], "labels": [2]}],
        "stepwise",
        ["label 0 is the number 2"],
    ),
    "step is a number": (
        "a.jsonl",
        [{"prompt": "p", "completions": [1], "labels": [1]}],
        None,
        ["step 0 is the number 1"],
    ),
    "steps are a string": (
        "a.jsonl",
        [{"prompt": "p", "completions": "a", "labels": [1]}],
        None,
        ["an entry per step"],
    ),
    "ids are words": ("a.jsonl", [{"input_ids": ["a"]}], None, ["holds the string 'a' at position 0"]),
    "ids beyond 32 bits": ("a.jsonl", [{"input_ids": [1, 2**31]}], None, ["the number 2147483648 at position 1"]),
    "mask of words": (
        "a.jsonl",
        [{"input_ids": [1, 2], "completion_mask": [1, "0"]}],
        None,
        ["column 'completion_mask': holds the string '0' at position 1"],
    ),
    "ids below zero": ("a.jsonl", [{"input_ids": [1, -100]}], None, ["the number -100 at position 1"]),
    "labels are shifted": (
        "a.jsonl",
        [{"input_ids": [1, 2], "labels": [2, 3]}],
        None,
        ["differs from input_ids at position 0"],
    ),
    "mask is too short": (
        "a.jsonl",
        [{"input_ids": [1, 2], "completion_mask": [1]}],
        None,
        ["has 1 entries for 2 ids"],
    ),
    "packed already": ("a.jsonl", [{"input_ids": [1, 2], "seq_lengths": [1, 1]}], None, ["packed already"]),
    # --- nothing to learn
    "all identical": (
        "a.jsonl",
        [{**GOOD_PAIR, "rejected": "a"}] * 3,
        "preference",
        ["none of the 3 rows", "no preference"],
    ),
    "all empty": ("a.jsonl", [{"text": ""}], None, ["none of the 1 rows", "a completion is empty"]),
}


@pytest.mark.parametrize("name", FILES)
def test_broken_file(name: str, tmp_path: Path) -> None:
    file, content, kind, wanted = FILES[name]
    message = message_of(write(tmp_path / file, content), kind)
    missing = [part for part in wanted if part not in message]
    assert not missing, f"{missing} not in:\n{message}"


@pytest.mark.parametrize(
    ("options", "kind", "row", "wanted"),
    [
        ({"assistant_only_loss": True}, "language_modeling", {"text": "t"}, "is plain text, but assistant_only_loss"),
        ({"completion_only_loss": True}, "language_modeling", {"text": "t"}, "has no prompt, but completion_only_loss"),
        ({"completion_only_loss": True}, "language_modeling", chat(USER), "Use assistant_only_loss=True"),
        ({"label_format": "inline"}, "stepwise", {"prompt": "p", "completion": "a"}, "has no [+] or [-] mark"),
        (
            {"label_format": "inline"},
            "stepwise",
            {"prompt": "p", "completion": "a [+] b"},
            "text after its last mark: 'b'",
        ),
        ({"dataset_text_field": "body"}, "language_modeling", {"body": 3}, "column 'body': is the number 3"),
    ],
)
def test_settings_that_rows_cannot_honour(options: Any, kind: str, row: Any, wanted: str, tmp_path: Path) -> None:
    assert wanted in message_of(write(tmp_path / "a.jsonl", [row]), kind, **options)


def test_arrow_and_parquet_name_their_rows(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist([GOOD_PAIR, {**GOOD_PAIR, "chosen": None}, {**GOOD_PAIR, "chosen": None}])
    pq.write_table(table, tmp_path / "a.parquet")
    message = message_of(tmp_path / "a.parquet", "preference")
    assert "2 of 3 rows" in message and "a.parquet, row 1, column 'chosen': is None" in message
    pq.write_table(pa.table({"text": [b"a", b"b"]}), tmp_path / "b.parquet")
    assert "is bytes, not a string" in message_of(tmp_path / "b.parquet", "language_modeling")
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "c.parquet")
    assert "holds no rows" in message_of(tmp_path / "c.parquet", "language_modeling")
    half = (tmp_path / "a.parquet").read_bytes()[:200]
    assert "not a readable Parquet file" in message_of(write(tmp_path / "d.parquet", half), None)


def test_all_problems_come_in_one_error(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "chosen": None if i % 2 else 3, "rejected": "b"} for i in range(50)]
    message = message_of(write(tmp_path / "a.jsonl", [GOOD_PAIR, *rows]), "preference")
    assert "50 of 51 rows cannot be used" in message
    assert sum(line.startswith("  - a.jsonl, line") for line in message.splitlines()) == 20
    assert "and 30 more" in message and "25 x column 'chosen': is None" in message


def test_many_bad_lines_are_counted(tmp_path: Path) -> None:
    message = message_of(write(tmp_path / "a.jsonl", "x\n" * 30), None)
    assert "30 lines cannot be read" in message and message.count("not valid JSON") == 20 and "and 10 more" in message


def test_wrong_columns_stop_early(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": "t"}] * (ENOUGH_WITHOUT_COLUMNS + 50))
    assert "Rows like these (language_modeling) fit SFT" in message_of(path, "preference")


def test_memory_is_bounded(tmp_path: Path) -> None:
    """6 MB of rows are checked in a small fraction of that."""
    path = tmp_path / "big.jsonl"
    with path.open("w") as file:
        for i in range(1500):
            file.write(
                json.dumps({"prompt": f"{i} " + "x" * 2000, "chosen": "a" * 1000, "rejected": "b" * 1000}) + "\n"
            )
    size = path.stat().st_size
    tracemalloc.start()
    report = check_rows(load_rows(path), "preference")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert report.trees == 1500 and size > 6e6 and peak < size / 8


def test_checks_do_not_import_torch(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [GOOD_PAIR, {**GOOD_PAIR, "chosen": None}])
    code = (
        "import sys\nfrom strop.data import check_rows, load_rows\nfrom strop.errors import DataError\n"
        "try:\n    check_rows(load_rows(sys.argv[1]))\nexcept DataError as e:\n    print(e)\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'pyarrow'} & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.jsonl")], capture_output=True, text=True, check=True
    )
    assert "column 'chosen': is None" in run.stdout and run.stdout.rstrip().endswith("[]")


NO_PROMPT = {
    "pairs": ("preference", {"prompt": "p", "chosen": "a", "rejected": "b"}, "prompt"),
    "pairs for KTO": ("unpaired_preference", {"prompt": "p", "chosen": "a", "rejected": "b"}, "prompt"),
    "pairs for their prompts": ("prompt_only", {"prompt": "p", "chosen": "a", "rejected": "b"}, "prompt"),
    "pairs with a beginning": ("preference", {"prompt": "p", "chosen": "The a", "rejected": "The b"}, "prompt"),
    "pairs of tokens": ("preference", {"prompt_ids": [5], "chosen_ids": [6], "rejected_ids": [7]}, "prompt_ids"),
    "labelled": ("unpaired_preference", {"prompt": "p", "completion": "a", "label": True}, "prompt"),
    "completions": ("prompt_completion", {"prompt": "p", "completion": "a"}, "prompt"),
    "language": ("language_modeling", {"prompt": "p", "completion": "a"}, "completion"),
    "messages": ("language_modeling", chat(USER, ANSWER), "messages"),
    "prompts": ("prompt_only", {"prompt": "p"}, "prompt"),
    "steps": ("stepwise", {"prompt": "p", "completions": ["a"], "labels": [1]}, "prompt"),
}


@pytest.mark.parametrize("name", NO_PROMPT)
def test_none_is_no_prompt_and_no_answer(name: str) -> None:
    """All rows of it are named together; the same rows without it are in order."""
    kind, row, column = NO_PROMPT[name]
    assert not check_rows([row], kind).left_out
    with pytest.raises(DataError) as caught:
        check_rows([row, {**row, column: None}, row, {**row, column: None}], kind)
    said = str(caught.value)
    assert "2 of 4 rows cannot be used" in said
    assert all(f"row {number}, column '{column}': is None" in said for number in (1, 3))


def test_a_column_of_no_prompts_beside_whole_conversations_is_in_order() -> None:
    row = {"prompt": None, "chosen": [USER, ANSWER], "rejected": [USER, {**ANSWER, "content": "b"}]}
    assert check_rows([row], "preference").rows_read == 1
    assert check_rows([{"chosen": "a", "rejected": "b"}], "preference").rows_read == 1, "no column at all"
