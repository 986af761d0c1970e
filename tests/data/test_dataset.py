"""Examples on demand: eager, lazy, streamed; nothing dropped in silence, lengths that do not change."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from typing import Any

import pytest
from tests.support.tokenizers import toy_tokenizer

from strop.data import DataReport, ExampleDataset, ExampleStream, RowStream, TokenizeOptions, prepare
from strop.errors import DataError
from strop.records import Example

WORDS = ("the", "good", "ant", "saw", "the", "bad", "bee", "and", "the", "cat", "ran", "to", "the", "dog")


def pairs(count: int) -> list[dict[str, Any]]:
    """Pairs of growing length; the prompt of row i has i + 1 words."""
    return [
        {"prompt": " ".join(WORDS[: i + 1]), "chosen": f" {i} good", "rejected": f" {i} bad bee", "id": i}
        for i in range(count)
    ]


ROWS: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "text": ("language_modeling", [{"text": " ".join(WORDS[: i + 1])} for i in range(12)]),
    "completion": ("language_modeling", [{"prompt": row["prompt"], "completion": row["chosen"]} for row in pairs(12)]),
    "chat": (
        "language_modeling",
        [
            {"messages": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["chosen"]}]}
            for row in pairs(12)
        ],
    ),
    "pairs": ("preference", pairs(12)),
    "labelled": ("unpaired_preference", pairs(12)),
    "steps": (
        "stepwise",
        [{"prompt": row["prompt"], "completions": ["a b", "c"], "labels": [1, 0]} for row in pairs(12)],
    ),
    "prompts": ("prompt_only", [{"prompt": row["prompt"]} for row in pairs(12)]),
}


def branch(example: Example) -> int:
    return len(example.prompt_ids) + max(map(len, example.completions), default=0)


@pytest.mark.parametrize("mode", ["keep_start", "keep_end"])
@pytest.mark.parametrize("name", ROWS)
def test_every_max_length(name: str, mode: str) -> None:
    """Sweep: every row is a tree within the limit with something to learn, or is counted and named."""
    kind, rows = ROWS[name]
    tokenizer = toy_tokenizer("chatml" if name == "chat" else "plain")
    whole = prepare(rows, kind, tokenizer)
    longest = max(map(branch, whole))
    trees = []
    for max_length in range(1, longest + 1):
        options = TokenizeOptions(max_length=max_length, truncation_mode=mode, assistant_only_loss=name == "chat")
        try:
            data = prepare(rows, kind, tokenizer, options)
        except DataError as error:
            assert "can be learned from" in str(error) and "left out" in str(error)
            trees.append(0)
            continue
        left_out = sum(found.count for found in data.report.left_out.values())
        assert len(data) + left_out == len(whole) and data.report.trees == len(data)
        for example in data:
            assert branch(example) <= max_length
            assert all(example.completions)
            for index in range(len(example.completions)):
                mask = example.mask(index)
                skipped = name != "steps" and not example.prompt_ids and mask[0]
                assert sum(mask) - skipped >= 1
            if name == "steps":
                assert len(example.extras["labels"]) == sum(example.mask(0))
            if name in ("pairs",):
                assert example.completions[0] != example.completions[1]
        trees.append(len(data))
        json.dumps(data.report.to_dict())
    assert trees == sorted(trees) and trees[-1] == len(whole)


def test_eager_sets_know_their_lengths() -> None:
    data = prepare(pairs(4), "preference", toy_tokenizer())
    assert isinstance(data, ExampleDataset)
    assert data.report.complete and list(data.report.sizes["tree"]) == [example.num_tokens for example in data]
    assert [example.row for example in data] == [0, 1, 2, 3]
    assert data[-1] == data[3] and data[1:3] == [data[1], data[2]]
    with pytest.raises(IndexError):
        data[4]


def test_left_out_rows_close_ranks() -> None:
    rows = [*pairs(3), {"prompt": "p", "chosen": "x", "rejected": "x"}, *pairs(1)]
    rows[2]["prompt"] = "long " * 9
    limit = len(toy_tokenizer().encode(rows[1]["prompt"])) + 3
    data = prepare(rows, "preference", toy_tokenizer(), TokenizeOptions(max_length=limit))
    assert [example.row for example in data] == [0, 1, 4]
    assert data.report.left_out["identical"].first[0][0] == 3
    assert data.report.left_out["prompt_too_long"].first[0][0] == 2


def test_lazy_sets_tokenise_what_is_asked_for(calls: Counter[str]) -> None:
    data = prepare(pairs(10), "preference", toy_tokenizer(), eager_rows=5)
    before = calls["__call__"]
    assert data.report.tokenized == 1 and not data.report.complete  # the rendered row
    assert data[7].row == 7 and data.report.tokenized == 2
    after = calls["__call__"]
    assert after > before
    assert data[7] == data[7] and calls["__call__"] == after
    assert "so far" in data.report.render()
    eager = prepare(pairs(10), "preference", toy_tokenizer())
    assert list(data) == list(eager) and data.report.complete
    assert data.report.to_dict()["lengths"] == eager.report.to_dict()["lengths"]


def test_lazy_sets_keep_their_length_and_name_stand_ins() -> None:
    rows = pairs(8)
    for i in (2, 3, 7):
        rows[i]["prompt"] = "long " * 40
    options = TokenizeOptions(max_length=30)
    data = prepare(rows, "preference", toy_tokenizer(), options, eager_rows=0)
    assert len(data) == 8
    assert [data[i].row for i in (7, 2, 5, 3, 0)] == [0, 4, 5, 4, 0]
    found = [example.row for example in data]
    assert found == [0, 1, 4, 4, 4, 5, 6, 0]
    assert sorted(row for row, _ in data.report.left_out["prompt_too_long"].first) == [2, 3, 7]
    assert data.report.left_out["prompt_too_long"].count == 3 and data.report.trees == 5
    assert any("the next usable row stands in" in finding.message for finding in data.report.findings)
    assert [data.resolve(i) for i in range(8)] == found
    again = prepare(rows, "preference", toy_tokenizer(), options, eager_rows=0)
    assert [again[i].row for i in reversed(range(8))] == found[::-1]


def test_a_lazy_set_without_a_usable_row() -> None:
    rows = [{**row, "prompt": "long " * 40} for row in pairs(3)]
    with pytest.raises(DataError, match="none of the 3 rows"):
        prepare(rows, "preference", toy_tokenizer(), TokenizeOptions(max_length=30), eager_rows=0)


STRICT = [
    {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
    {
        "messages": [
            {"role": "user", "content": "q"},
            {"role": "system", "content": "s"},
            {"role": "assistant", "content": "a"},
        ]
    },
]


@pytest.mark.parametrize("eager_rows", [0, 100])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_template_that_refuses_a_row_says_so_before_training(eager_rows: int, streaming: bool) -> None:
    rows: Any = RowStream(lambda: iter(STRICT)) if streaming else STRICT
    with pytest.raises(DataError, match=r"row 1: the chat template cannot render it: system must come first"):
        prepare(rows, "language_modeling", toy_tokenizer("chatml_strict"), eager_rows=eager_rows)
    skipping = TokenizeOptions(skip_bad_rows=True)
    data = prepare(rows, "language_modeling", toy_tokenizer("chatml_strict"), skipping, eager_rows=eager_rows)
    assert {example.row for example in data} == {0}
    assert data.report.left_out["unrenderable"].count == 1


def test_examples_survive_pickling() -> None:
    for eager_rows in (0, 100):
        data = prepare(pairs(4), "preference", toy_tokenizer(), eager_rows=eager_rows)
        assert list(pickle.loads(pickle.dumps(data))) == list(data)


def test_the_torch_loader_takes_the_set() -> None:
    from torch.utils.data import DataLoader

    data = prepare(pairs(5), "preference", toy_tokenizer(), eager_rows=0)
    batches = list(DataLoader(data, batch_size=2, collate_fn=list))  # type: ignore[arg-type]
    assert [example for batch in batches for example in batch] == list(data)


# ---- streams


def stream(rows: list[dict[str, Any]], **options: Any) -> ExampleStream:
    found = prepare(RowStream(lambda: iter(rows), "s"), "preference", toy_tokenizer(), TokenizeOptions(**options))
    assert isinstance(found, ExampleStream)
    return found


def test_streams_give_the_same_trees() -> None:
    rows = [*pairs(40), {"prompt": "p", "chosen": "x", "rejected": "x"}]
    data = prepare(rows, "preference", toy_tokenizer())
    walked = stream(rows)
    assert list(walked) == list(data) == list(walked)
    mine, theirs = walked.report.to_dict(), data.report.to_dict()
    assert {key: mine[key] for key in ("rows_read", "trees", "left_out", "lengths", "truncated")} == {
        key: theirs[key] for key in ("rows_read", "trees", "left_out", "lengths", "truncated")
    }


def test_streams_start_before_all_is_read() -> None:
    read = []

    def rows() -> Any:
        for row in pairs(2000 // 1)[:1000]:
            read.append(1)
            yield row

    walk = iter(prepare(RowStream(rows), "preference", toy_tokenizer()))
    head = len(read)
    next(walk)
    assert head <= 257 and len(read) - head <= 33


def test_streams_go_on_where_they_stood() -> None:
    rows = [*pairs(50), {"prompt": "p", "chosen": "x", "rejected": "x"}, *pairs(5)]
    for kind in ("preference", "unpaired_preference"):
        whole = list(prepare(rows, kind, toy_tokenizer()))
        for stop in (0, 1, 31, 32, 33, 50, len(whole) - 1, len(whole)):
            walked = prepare(RowStream(lambda: iter(rows)), kind, toy_tokenizer())
            walk = iter(walked)
            assert [next(walk) for _ in range(stop)] == whole[:stop]
            resumed = prepare(RowStream(lambda: iter(rows)), kind, toy_tokenizer())
            resumed.load_state_dict(json.loads(json.dumps(walked.state_dict())))
            assert list(resumed) == whole[stop:]
            assert list(resumed) == whole and resumed.state_dict() == {"row": 56, "part": 0}
    with pytest.raises(DataError, match="needs a 'row'"):
        resumed.load_state_dict({})


def test_broken_rows_of_streams() -> None:
    bad = {"prompt": "p", "chosen": None, "rejected": "b"}
    with pytest.raises(DataError, match="s, row 1, column 'chosen': is None"):
        stream([pairs(1)[0], bad])
    late = [*pairs(1) * 300, bad, *pairs(1)]
    walk = iter(stream(late))
    with pytest.raises(DataError, match="s, row 300, column 'chosen': is None"):
        list(walk)
    skipping = stream(late, skip_bad_rows=True)
    assert len(list(skipping)) == 301 and skipping.report.left_out["bad_row"].first == [(300, "chosen is None")]
    with pytest.raises(DataError, match="there are no rows"):
        stream([])
    with pytest.raises(DataError, match="none of the 3 rows"):
        list(stream(pairs(3), max_length=1))


def test_a_report_is_json(tokenizer: Any) -> None:
    report = prepare(pairs(3), "preference", tokenizer, TokenizeOptions(max_length=8)).report
    assert isinstance(report, DataReport)
    assert json.loads(json.dumps(report.to_dict()))["trees"] == report.trees


def test_a_prepared_row_can_be_looked_at_by_column() -> None:
    (tree,) = data = prepare([{"prompt": "the ant", "completion": " ran"}], "prompt_completion", toy_tokenizer())
    assert data.column_names == list(dict(tree)) == ["prompt_ids", "completion_ids", "input_ids", "labels"]
    assert data["labels"] == data[:]["labels"] == [tree["labels"]]
    assert data[0]["input_ids"] == tree.prompt_ids + tree.completions[0]
    assert data[0]["labels"] == [-100] * len(tree.prompt_ids) + tree.completions[0]
    (pair,) = prepare([{"prompt": "p", "chosen": "a", "rejected": "b"}], "preference", toy_tokenizer())
    assert [pair["chosen_ids"], pair["rejected_ids"]] == pair.completions
    assert "chosen_input_ids" in pair and "completion_input_ids" not in pair
    assert pair["rejected_input_ids"] == pair["prompt_input_ids"] + pair["rejected_ids"]
    assert tree["completion_input_ids"] == tree["input_ids"] and pair["prompt_input_ids"] == pair.prompt_ids
    with pytest.raises(KeyError, match="this row has prompt_ids, chosen_ids, rejected_ids"):
        pair["input_ids"]
