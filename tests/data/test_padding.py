"""None in nested columns: what Arrow adds goes, what a user wrote stays, whatever way the rows come."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, IterableDataset, load_dataset
from tests.support.tokenizers import toy_tokenizer

from strop.data import load_rows, prepare

CALL = {"function": {"name": "f", "arguments": {"city": None, "n": 1}}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"x": {"default": None}}}}}
ROW = {
    "messages": [
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "assistant", "content": "done"},
    ],
    "tools": [TOOL],
}


def ways(rows: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """The same rows by every way in."""
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    made = Dataset.from_list(rows)
    made.to_parquet(folder / "rows.parquet")
    made.save_to_disk(folder / "saved")
    return {
        "list": rows,
        "path": path,
        "load_dataset": load_dataset("json", data_files=str(path), split="train", cache_dir=str(folder / "cache")),
        "Dataset": made,
        "selected": made.select(range(1, len(rows))),
        "parquet": folder / "rows.parquet",
        "saved": folder / "saved",
        "stream": made.to_iterable_dataset(),
        "generator": IterableDataset.from_generator(lambda: iter(rows)),
    }


def text_of(source: Any) -> str:
    tokenizer = toy_tokenizer("chatml_tools")
    example = next(iter(prepare(source, "language_modeling", tokenizer)))
    return tokenizer.decode(example.prompt_ids + example.completions[0])


def test_one_text_whatever_way_the_rows_come(tmp_path: Path) -> None:
    texts = {name: text_of(source) for name, source in ways([ROW] * 3, tmp_path).items()}
    assert '{"city": null, "n": 1}' in texts["list"] and '{"default": null}' in texts["list"]
    assert {name: text for name, text in texts.items() if text != texts["list"]} == {}


def test_what_arrow_adds_goes(tmp_path: Path) -> None:
    """Objects with other keys in each row: no way in shows a key that the row does not have."""
    calls = [{"function": {"name": "f", "arguments": {key: 1}}} for key in ("a", "b", "a")]
    rows = [
        {
            "messages": [
                {"role": "user", "content": "go"},
                {"role": "assistant", "content": "", "tool_calls": [call]},
            ]
        }
        for call in calls
    ]
    found = ways(rows, tmp_path)
    assert {name: text_of(source) for name, source in found.items()} == {
        **dict.fromkeys(found, text_of(rows)),
        "selected": text_of(rows[1:]),
    }


def test_columns_of_a_reward_keep_their_none(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "answer": {"value": 3, "unit": None}}] * 2
    for name, source in ways(rows, tmp_path).items():
        assert next(iter(load_rows(source)))["answer"] == {"value": 3, "unit": None}, name


@pytest.mark.parametrize("in_place", [False, True])
def test_rows_are_what_indexing_the_dataset_gives(in_place: bool) -> None:
    def shout(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {"text": [text.upper() for text in batch["raw"]]}

    data = Dataset.from_list([{"raw": "ant"}, {"raw": "bee"}])
    if in_place:
        data.set_transform(shout)
    else:
        data = data.with_transform(shout)
    rows = load_rows(data)
    assert list(rows) == [data[0], data[1]] == [{"text": "ANT"}, {"text": "BEE"}]
    report = prepare(data, "language_modeling", toy_tokenizer()).report
    assert any("has a transform: every row was read through it once" in finding.message for finding in report.findings)


def test_a_transform_that_draws_is_read_once() -> None:
    draw = random.Random(0)

    def noisy(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {"text": [f"{text} {draw.random()}" for text in batch["text"]]}

    prepared = prepare(
        Dataset.from_list([{"text": "ant"}] * 4).with_transform(noisy), "language_modeling", toy_tokenizer()
    )
    assert [e.completions for e in prepared] == [e.completions for e in prepared]


def test_columns_that_a_format_hides_are_not_there() -> None:
    data = Dataset.from_list([{"text": "ant", "messages": [{"role": "user", "content": "x"}]}])
    for kind in (None, "numpy", "torch"):
        shown = data.with_format(kind, columns=["text"])
        assert list(load_rows(shown)) == [{"text": "ant"}] == [dict(shown[0])]
