"""Conversions between kinds of rows, and their ways back."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strop.data import explicit_prompt, join_steps, keep_desirable, prepare, unpair
from strop.data.convert import split_ids, split_messages, split_text
from strop.testing.tokenizers import toy_tokenizer


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def test_unpair_and_back() -> None:
    rows = [{"prompt": f"p{i}", "chosen": f"c{i}", "rejected": f"r{i}", "id": i} for i in range(3)]
    labelled = [part for row in rows for part in unpair(row)]
    assert [row["label"] for row in labelled] == [True, False] * 3
    assert [row["id"] for row in labelled] == [0, 0, 1, 1, 2, 2]
    back = [
        {"prompt": good["prompt"], "chosen": good["completion"], "rejected": bad["completion"], "id": good["id"]}
        for good, bad in zip(labelled[::2], labelled[1::2], strict=True)
    ]
    assert back == rows


def test_unpair_finds_the_prompt() -> None:
    good, bad = unpair({"chosen": "say yes", "rejected": "say no"})
    assert (good["prompt"], good["completion"], bad["completion"]) == ("say", " yes", " no")


def test_keep_desirable_and_back() -> None:
    rows = [{"prompt": "p", "completion": str(i), "label": i < 2, "id": i} for i in range(4)]
    kept = [part for row in rows for part in keep_desirable(row)]
    assert [{**row, "label": True} for row in kept] == rows[:2]


def test_join_steps_and_back() -> None:
    row = {"prompt": "p", "completions": ["a", "b"], "labels": [True, False], "id": 1}
    joined = join_steps(row)
    assert joined == {"prompt": "p", "completion": "a\nb", "label": False, "id": 1}
    assert joined["completion"].split("\n") == row["completions"]
    assert join_steps({**row, "labels": [0.5, 1.0]})["label"] is True
    assert join_steps(row, separator="")["completion"] == "ab"


def test_explicit_prompt_and_back() -> None:
    row = {"chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")], "id": 1}
    explicit = explicit_prompt(row)
    assert explicit["prompt"] == [user("q")] and explicit["chosen"] == [assistant("a")] and explicit["id"] == 1
    assert explicit["prompt"] + explicit["chosen"] == row["chosen"]
    assert explicit["prompt"] + explicit["rejected"] == row["rejected"]
    assert explicit_prompt(explicit) is explicit


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("same", "same", ""),
        ("abc", "abcd", ""),
        ("x ", "y", ""),
        ("Q: hi A: yes", "Q: hi A: no", "Q: hi A:"),
        ("Q: hi\nA: yes", "Q: hi\nA: no", "Q: hi\nA:"),
        ("the good ant", "the good bee", "the good"),
        ("the goods", "the goodies", "the"),
        ("line one\nyes", "line one\nno", "line one\n"),
        ("it is (a)", "it is (b)", "it is ("),
        ("今天好", "今天坏", "今天"),
        ("", "a", ""),
        ("a b", "a b c", "a"),
    ],
)
def test_split_text(chosen: str, rejected: str, prompt: str) -> None:
    assert split_text(chosen, rejected) == (prompt, chosen[len(prompt) :], rejected[len(prompt) :])


@settings(max_examples=100, deadline=None)
@given(st.text("ab .\n", max_size=12), st.text("ab .\n", max_size=12))
def test_split_text_loses_nothing(chosen: str, rejected: str) -> None:
    prompt, good, bad = split_text(chosen, rejected)
    assert (prompt + good, prompt + bad) == (chosen, rejected)
    assert bool(good) == bool(chosen) and bool(bad) == bool(rejected)


@pytest.mark.parametrize(
    ("chosen", "rejected", "shared"),
    [
        ([user("q"), assistant("a")], [user("q"), assistant("b")], 1),
        (
            [user("q"), assistant("a"), user("r"), assistant("s")],
            [user("q"), assistant("a"), user("r"), assistant("t")],
            3,
        ),
        ([assistant("a")], [assistant("b")], 0),
        # one is the start of the other: each keeps an assistant message
        ([user("q"), assistant("a")], [user("q"), assistant("a"), user("r"), assistant("s")], 1),
        ([user("q"), assistant("a"), user("x")], [user("q"), assistant("a"), user("y")], 1),
        ([user("q"), assistant("a")], [user("z"), assistant("a")], 0),
    ],
)
def test_split_messages(chosen: list[Any], rejected: list[Any], shared: int) -> None:
    assert split_messages(chosen, rejected) == (chosen[:shared], chosen[shared:], rejected[shared:])


def test_split_ids() -> None:
    assert split_ids([1, 2, 3], [1, 2, 4, 5]) == ([1, 2], [3], [4, 5])
    assert split_ids([1, 2], [1, 2, 3]) == ([1], [2], [2, 3])
    assert split_ids([], [1]) == ([], [], [1])


def test_prepare_agrees_with_the_conversions() -> None:
    """What `prepare` does by itself equals preparing the converted rows."""
    tokenizer = toy_tokenizer()
    pairs = [{"chosen": "say yes", "rejected": "say no"}, {"prompt": "the", "chosen": " ant", "rejected": " bee"}]
    steps = [{"prompt": "p", "completions": ["a", "b"], "labels": [1, 0]}]
    labelled = [{"prompt": "p", "completion": " a", "label": i == 0} for i in range(2)]
    for rows, converted, kind in (
        (pairs, [part for row in pairs for part in unpair(row)], "unpaired_preference"),
        (pairs, [explicit_prompt(row) for row in pairs], "preference"),
        (steps, [join_steps(row) for row in steps], "unpaired_preference"),
        (labelled, [part for row in labelled for part in keep_desirable(row)], "language_modeling"),
    ):
        found, wanted = prepare(rows, kind, tokenizer), prepare(converted, kind, tokenizer)
        assert [(e.prompt_ids, e.completions) for e in found] == [(e.prompt_ids, e.completions) for e in wanted]
        assert [e.extras.get("label") for e in found] == [e.extras.get("label") for e in wanted]
