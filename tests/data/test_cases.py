"""From a row to what a method needs of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from strop.data import DatasetKind, TokenizeOptions
from strop.data.cases import Case, read_cases
from strop.data.findings import RowProblem

PAIRS, LABELLED = DatasetKind.PREFERENCE, DatasetKind.UNPAIRED_PREFERENCE
LANGUAGE, COMPLETION = DatasetKind.LANGUAGE_MODELING, DatasetKind.PROMPT_COMPLETION
PROMPTS, STEPS = DatasetKind.PROMPT_ONLY, DatasetKind.STEPWISE


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def read(row: dict[str, Any], kind: DatasetKind, **options: Any) -> list[Case]:
    return read_cases(row, kind, TokenizeOptions(**options))


def one(row: dict[str, Any], kind: DatasetKind, **options: Any) -> Case:
    (case,) = read(row, kind, **options)
    return case


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [user("q")], "chosen": [assistant("a")], "rejected": [assistant("b")]},
        {"chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")]},
        {"prompt": "q", "chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")]},
        {"prompt": "q", "chosen": [assistant("a")], "rejected": [assistant("b")]},
        {"prompt": [user("q")], "chosen": "a", "rejected": "b"},
        {"prompt": "q", "chosen": assistant("a"), "rejected": assistant("b")},
        {"prompt": [user("q")], "chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")]},
        {
            "conversations": [{"from": "human", "value": "q"}],
            "chosen": {"from": "gpt", "value": "a"},
            "rejected": {"from": "gpt", "value": "b"},
        },
    ],
)
def test_pairs_of_every_manner(row: dict[str, Any]) -> None:
    """UltraFeedback, TRL, LLaMA-Factory and others write the same pair in these ways."""
    case = one(row, PAIRS)
    assert case.chat and case.prompt == [user("q")] and case.completions == [[assistant("a")], [assistant("b")]]
    good, bad = read(row, LABELLED)
    assert (good.completions, good.extras["label"]) == ([[assistant("a")]], True)
    assert (bad.completions, bad.extras["label"]) == ([[assistant("b")]], False)


def test_margin() -> None:
    for value in (2, 2.0, "2", np.float32(2)):
        case = one({"prompt": "p", "chosen": "a", "rejected": "b", "margin": value, "id": 1}, PAIRS)
        assert case.extras["margin"] == 2.0 and case.extras["columns"] == {"id": 1}
    assert "margin" not in one({"prompt": "p", "chosen": "a", "rejected": "b", "margin": None}, PAIRS).extras


@pytest.mark.parametrize(
    ("label", "wanted"),
    [(True, True), (False, False), (1, True), (0, False), (1.0, True), ("true", True), ("False", False), ("0", False),
     (np.bool_(True), True), (np.bool_(False), False), (np.int64(0), False)],
)  # fmt: skip
def test_labels_of_every_type(label: Any, wanted: bool) -> None:
    assert one({"prompt": "p", "completion": "c", "label": label}, LABELLED).extras["label"] is wanted


def test_messages_with_a_label() -> None:
    case = one({"messages": [user("q"), assistant("a")], "label": False}, LABELLED)
    assert (case.prompt, case.completions, case.extras["label"]) == ([user("q")], [[assistant("a")]], False)
    case = one(
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "label": 1}, LABELLED
    )
    assert (case.prompt, case.extras["label"]) == ([user("q")], True)


def test_messages_that_end_in_an_answer_are_prompt_and_completion() -> None:
    case = one({"messages": [user("q"), assistant("a"), user("r"), assistant("b"), user("x")]}, COMPLETION)
    assert case.prompt == [user("q"), assistant("a"), user("r")] and case.completions == [[assistant("b")]]


def test_what_a_label_beside_a_completion_means() -> None:
    row = {"prompt": "p", "completion": "c", "label": "sports"}
    assert one(row, LANGUAGE).extras["columns"] == {"label": "sports"}
    assert one({**row, "label": True}, LANGUAGE).left_out is None
    assert one({**row, "label": False}, LANGUAGE).left_out == ("label_false", "label is false")


def test_prompts_of_other_kinds_of_rows() -> None:
    pair = one({"chosen": "say yes", "rejected": "say no"}, PROMPTS)
    assert pair.prompt == "say" and pair.completions == []
    assert pair.extras["columns"] == {"chosen": "say yes", "rejected": "say no"}
    assert one({"prompt": "p", "completion": "c"}, PROMPTS).extras["columns"] == {"completion": "c"}


def test_steps_become_a_labelled_answer() -> None:
    row = {"prompt": "p", "completions": ["a", "b"], "labels": [True, False]}
    case = one(row, LABELLED, step_separator=" | ")
    assert case.completions == ["a | b"] and case.extras["label"] is False
    chat = one({**row, "prompt": [user("q")]}, LABELLED)
    assert chat.completions == [[assistant("a\nb")]] and chat.chat


def test_the_text_column_may_have_another_name() -> None:
    case = one({"body": "b", "text": "t", "messages": [user("q")]}, LANGUAGE, dataset_text_field="body")
    assert case.completions == ["b"] and case.extras["columns"]["text"] == "t"
    assert one({"text": "t", "messages": [user("q")]}, LANGUAGE).form == "messages"


def test_arrays_are_read_as_lists() -> None:
    case = one({"messages": np.array([user("q"), assistant("a")])}, LANGUAGE)
    assert case.completions == [[user("q"), assistant("a")]]
    case = one({"input_ids": np.array([1, 2])}, LANGUAGE)
    assert case.completions == [[1, 2]]
    case = one({"prompt": "p", "completions": np.array(["a"]), "labels": np.array([True])}, STEPS)
    assert case.extras["labels"] == [1.0]


def test_inline_steps() -> None:
    case = one({"prompt": "p", "completion": " one [+]\n two[-] "}, STEPS, label_format="inline")
    assert (case.completions, case.extras["labels"]) == (["one", "two"], [1.0, 0.0])
    case = one({"text": "one [+]"}, STEPS, label_format="inline")
    assert (case.prompt, case.completions) == ("", ["one"])


def test_empty_messages_are_empty_only_if_nothing_is_said() -> None:
    empty = {"prompt": [user("q")], "completion": [assistant("")]}
    assert one(empty, LANGUAGE).left_out == ("empty_completion", "completion is empty")
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    assert one({"prompt": [user("q")], "completion": [call]}, LANGUAGE).left_out is None
    assert one({"messages": [user(""), assistant("")]}, LANGUAGE).left_out == (
        "empty_completion",
        "every message is empty",
    )


def test_a_missing_column_is_named_by_the_nearest_shape() -> None:
    with pytest.raises(RowProblem, match="is missing") as caught:
        read({"prompt": "p", "labels": [1]}, STEPS)
    assert caught.value.column == "completions"


def test_rows_are_not_changed() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"arguments": "{}"}}]}
    row = {"messages": [user("q"), call], "tools": '[{"a": 1}]'}
    kept = repr(row)
    one(row, LANGUAGE)
    assert repr(row) == kept


def test_seq_lengths_of_one_document() -> None:
    for lengths in ([2], 2, None):
        assert one({"input_ids": [1, 2], "seq_lengths": lengths}, LANGUAGE).completions == [[1, 2]]


def test_a_reward_may_ask_for_tools_and_template_variables() -> None:
    row = {"prompt": "p", "tools": [{"type": "function"}], "chat_template_kwargs": {"a": 1}, "n": 2}
    (case,) = read_cases(row, DatasetKind.PROMPT_ONLY, TokenizeOptions())
    assert case.extras["columns"] == {key: row[key] for key in ("n", "tools", "chat_template_kwargs")}
    assert case.tools == row["tools"] and case.template_kwargs == {"a": 1}
