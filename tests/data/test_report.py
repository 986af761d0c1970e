"""The account of a data set."""

from __future__ import annotations

import json
from array import array

import pytest

from strop.data import TokenizeOptions, prepare
from strop.data.report import quantiles, runs_of
from strop.testing.tokenizers import toy_tokenizer

ROWS = [{"prompt": "the", "chosen": " good ant" * (i + 1), "rejected": " bad"} for i in range(8)]


def test_counts_and_lengths() -> None:
    data = prepare(ROWS, "preference", toy_tokenizer(), TokenizeOptions(max_length=8))
    report = data.report
    assert (report.rows_read, report.trees, report.tokenized, report.complete) == (8, 8, 8, True)
    assert report.truncated == sum("truncated" in example.extras for example in data) == 7
    assert report.lengths["prompt"] == dict.fromkeys(("min", "p50", "p90", "p99", "max"), 2)
    assert report.lengths["tree"]["max"] == max(example.num_tokens for example in data)
    (finding,) = [f for f in report.findings if "cut to length" in f.message]
    assert finding.severity == "warning" and "7 of 8 trees" in finding.message
    whole = prepare(ROWS, "preference", toy_tokenizer())
    longest = [len(e.prompt_ids) + max(map(len, e.completions)) for e in whole]
    assert list(report.sizes["uncut"]) == list(whole.report.sizes["uncut"]) == longest
    assert f"max_length={max(longest)} all of them" in finding.fix


def test_a_rendered_row_with_its_mask() -> None:
    sample = prepare(ROWS[:1], "preference", toy_tokenizer()).report.sample
    assert sample is not None and sample["row"] == 0
    shown = {part["name"]: runs_of(part) for part in sample["parts"]}
    assert shown == {
        "prompt": [("the", False)],
        "chosen": [(" good ant</s>", True)],
        "rejected": [(" bad</s>", True)],
    }
    text = prepare([{"text": "hello"}], "language_modeling", toy_tokenizer()).report.sample
    assert text is not None and text["parts"][0]["mask"][0] == 0  # nothing stands before the first token
    scored = prepare(ROWS[:1], "preference", toy_tokenizer(), TokenizeOptions(score_prompt=True)).report.sample
    assert scored is not None and scored["parts"][0]["mask"] == [0, 1]


def test_render_names_what_matters() -> None:
    rows = [*ROWS, {"prompt": "p", "chosen": "x", "rejected": "x"}, {"prompt": "p", "chosen": "", "rejected": "y"}]
    data = prepare(rows, "preference", toy_tokenizer(), name="train")
    text = data.report.render()
    assert text.startswith("train: rows, preference: 10 rows, 8 trees, 2 left out")
    assert "row 8; chosen equals rejected" in text and "row 9; chosen is empty" in text and "[[ good ant</s>]]" in text


def test_to_dict_is_json_and_complete() -> None:
    rows = [*ROWS, {"prompt": "p", "chosen": "x", "rejected": "x"}]
    about = json.loads(json.dumps(prepare(rows, "preference", toy_tokenizer()).report.to_dict()))
    assert about["left_out"]["identical"]["count"] == 1 and about["left_out"]["identical"]["rows"] == [
        [8, "chosen equals rejected"]
    ]
    assert {finding["severity"] for finding in about["findings"]} == {"warning"}
    assert about["kind"] == "preference" and about["sample"]["parts"]


@pytest.mark.parametrize(
    ("values", "wanted"), [([5], [5, 5, 5, 5, 5]), (list(range(101)), [0, 50, 90, 99, 100]), ([3, 1], [1, 1, 3, 3, 3])]
)
def test_quantiles(values: list[int], wanted: list[int]) -> None:
    assert list(quantiles(array("i", values)).values()) == wanted


@pytest.mark.parametrize(
    ("tokens", "mask", "wanted"),
    [
        (["a", "b", "c"], [0, 1, 1], [("a", False), ("bc", True)]),
        (["a", "b"], [1, 0], [("a", True), ("b", False)]),
        ([], [], []),
    ],
)
def test_runs(tokens: list[str], mask: list[int], wanted: list[tuple[str, bool]]) -> None:
    part = {"tokens": tokens, "mask": mask, "length": len(tokens)}
    assert runs_of(part) == wanted
    assert runs_of({**part, "length": len(tokens) + 3}) == [*wanted, (" ... and 3 more tokens", False)]
