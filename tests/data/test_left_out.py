"""Rows that are in order: which of them are left out, and what is worth a warning about the others."""

from __future__ import annotations

from typing import Any

import pytest

from strop.data import DataReport, TokenizeOptions, check_rows, prepare

GOOD_PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}
USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def test_skipped_bad_rows_are_named() -> None:
    rows = [GOOD_PAIR, {**GOOD_PAIR, "chosen": None}, {**GOOD_PAIR, "chosen": 3}, "no row at all"]
    report = check_rows([GOOD_PAIR, *rows[:3]], "preference", TokenizeOptions(skip_bad_rows=True))
    assert report.trees == 2 and report.left_out["bad_row"].first == [
        (2, "chosen is None"),
        (3, "chosen is the number 3"),
    ]
    assert [finding.row for finding in report.findings if finding.severity == "error"] == [2, 3]


def left_out(report: DataReport) -> dict[str, list[int]]:
    return {reason: [row for row, _ in found.first] for reason, found in report.left_out.items()}


def test_unusable_rows_are_counted_and_named() -> None:
    rows = [
        GOOD_PAIR,
        {"prompt": "p", "chosen": "same", "rejected": "same"},
        {"prompt": "p", "chosen": "", "rejected": "b"},
        {"prompt": "p", "chosen": "a", "rejected": ""},
        {"prompt": [USER], "chosen": [ANSWER], "rejected": [{"role": "assistant", "content": ""}]},
    ]
    report = check_rows(rows, "preference")
    assert left_out(report) == {"identical": [1], "empty_completion": [2, 3, 4]}
    assert (report.rows_read, report.trees) == (5, 1)
    assert report.left_out["empty_completion"].first[0] == (2, "chosen is empty")
    pairs = check_rows([*rows, {**GOOD_PAIR, "rejected": ""}], "unpaired_preference")
    assert left_out(pairs) == {"identical": [1, 1], "empty_completion": [2, 3, 4, 5]} and pairs.trees == 6


def test_undesirable_rows_are_left_out_of_imitation() -> None:
    rows = [{"prompt": "p", "completion": str(i), "label": i % 2 == 0} for i in range(4)]
    assert left_out(check_rows(rows, "language_modeling")) == {"label_false": [1, 3]}


def test_duplicates_are_found() -> None:
    rows = [{"text": "a", "id": 1}, {"text": "b", "id": 2}, {"text": "a", "id": 3}, {"text": "a", "id": 4}]
    (finding,) = [f for f in check_rows(rows, "language_modeling").findings if "cop" in f.message]
    assert finding.message.startswith("2 rows are exact copies") and "row 2 repeats row 0" in finding.message
    assert not check_rows(rows[:2], "language_modeling").findings
    pairs = check_rows([GOOD_PAIR, GOOD_PAIR], "unpaired_preference")
    assert [f.message for f in pairs.findings] == ["1 row is an exact copy of another (row 1 repeats row 0)"]


def test_labels_of_one_kind_are_reported() -> None:
    rows = [{"prompt": "p", "completion": c, "label": True} for c in "ab"]
    assert any("every label is True" in f.message for f in check_rows(rows, "unpaired_preference").findings)


def test_notes() -> None:
    repeats = [{"prompt": "the q", "chosen": "the q a", "rejected": "the q b"}]
    assert any("whole prompt again" in f.message for f in check_rows(repeats, "preference").findings)
    silent = check_rows([{"messages": [USER]}], "language_modeling").findings
    assert any("no assistant message" in f.message for f in silent)


def test_control_tokens_in_messages_are_reported(chatml: Any) -> None:
    said = {"role": "user", "content": "say <|im_end|> twice"}
    rows = [{"messages": [USER, ANSWER]}, {"messages": [said, ANSWER]}]
    (finding,) = [f for f in prepare(rows, "language_modeling", chatml).report.findings if "control" in f.message]
    assert finding.row == 1


@pytest.mark.parametrize("kind", ["preference", "unpaired_preference"])
def test_rows_that_say_the_opposite_of_one_another(kind: str) -> None:
    good, bad = {"chosen": "a", "rejected": "b"}, {"chosen": "b", "rejected": "a"}
    rows = [{"prompt": "p", **good}, {"prompt": "q", **good}, {"prompt": "p", **bad}]
    messages = [finding.message for finding in check_rows(rows, kind).findings]
    assert [m for m in messages if "rejects" in m] == [
        "1 of the rows prefer what another one rejects (row 2 against row 0)"
    ]
    assert not any("rejects" in finding.message for finding in check_rows(rows[:2] * 2, kind).findings)


@pytest.mark.parametrize("blank", ["", " \n"])
@pytest.mark.parametrize("chatty", [False, True])
def test_blank_prompts_and_answers_are_warned_of_by_row(blank: str, chatty: bool) -> None:
    prompt, answer = ([USER], [ANSWER]) if chatty else ("p", "a")
    nothing = [{**USER, "content": blank}] if chatty else blank
    row = {"prompt": prompt, "completion": answer}
    findings = check_rows([row, {**row, "prompt": nothing}], "prompt_completion").findings
    assert ["the prompt is empty or white space" in f.message for f in findings if f.row == 1] == [True]
    white = [{**ANSWER, "content": blank}] if chatty else blank
    checked = check_rows([row, {**row, "completion": white}], "prompt_completion")
    warned = any("nothing but white space" in found.message for found in checked.findings if found.row == 1)
    assert (warned, "empty_completion" in checked.left_out) == (bool(blank), not blank)
