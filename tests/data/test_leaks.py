"""What evaluation rows share with training rows is said, once."""

from __future__ import annotations

from typing import Any

import pytest

from strop.data import check_rows, note_leaks


def said(train: list[Any], evaluation: list[Any], kind: str | None = None) -> list[str]:
    reports = {"train": check_rows(train, kind), "eval_a": check_rows(evaluation, kind)}
    before = len(reports["eval_a"].findings)
    note_leaks(reports)
    note_leaks(reports)
    return [finding.message for finding in reports["eval_a"].findings][before:]


def test_rows_and_prompts_that_are_trained_on() -> None:
    train = [{"prompt": f"p{i}", "completion": f"c{i}"} for i in range(4)]
    same = ["the evaluation rows are the training rows: their metrics say nothing about other rows"]
    assert said(train, train) == said(train, train[::-1]) == said(train, train[:2]) == same
    other = {"prompt": "p1", "completion": "another"}
    shared = "1 of 2 prompts of the evaluation rows stand in the training rows too"
    assert said(train, [other, {**other, "prompt": "p9"}]) == [shared]
    assert said(train, [train[1], {**other, "prompt": "p9"}]) == [f"{shared} (1 as whole rows)"]
    assert said(train, [{**other, "prompt": "p9"}]) == []


@pytest.mark.parametrize("kind", ["preference", "unpaired_preference"])
def test_the_same_pairs_with_swapped_labels(kind: str) -> None:
    train = [{"prompt": f"p{i}", "chosen": "a", "rejected": "b"} for i in range(4)]
    swapped = {"prompt": "p1", "chosen": "b", "rejected": "a"}
    cases = 2 if kind == "unpaired_preference" else 1
    messages = said(train, [swapped, {**swapped, "prompt": "p9"}], kind)
    assert f"{cases} of {2 * cases} evaluation rows prefer what a training row rejects" in messages
    assert said(train, [{**swapped, "rejected": "c"}], kind)[0].startswith(f"{cases} of {cases} prompts")
    assert not any("rejects" in message for message in said(train, [{**swapped, "rejected": "c"}], "preference"))
