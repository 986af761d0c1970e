"""Rows as scripts prepare them by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from datasets import Dataset, DatasetDict

from strop.errors import DataError
from strop.scripts.conversations import (
    apply_chat_template,
    extract_prompt,
    is_conversational,
    is_conversational_from_value,
    maybe_apply_chat_template,
    maybe_convert_to_chatml,
    maybe_extract_prompt,
    maybe_unpair_preference_dataset,
    unpair_preference_dataset,
)
from strop.testing.tokenizers import toy_tokenizer


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


PAIR = {"chosen": [user("q"), assistant("yes")], "rejected": [user("q"), assistant("no")]}
SPLIT = {"prompt": [user("q")], "chosen": [assistant("yes")], "rejected": [assistant("no")]}


def test_a_prompt_is_the_common_beginning() -> None:
    assert extract_prompt(PAIR) == SPLIT
    texts = {"chosen": "The sky is blue.", "rejected": "The sky is green."}
    assert extract_prompt(texts) == {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}


def test_of_two_completions_one_of_which_begins_the_other_something_is_left() -> None:
    assert extract_prompt({"chosen": "ab", "rejected": "abc"}) == {"prompt": "a", "chosen": "b", "rejected": "bc"}
    assert extract_prompt({"chosen": "x", "rejected": "y"}) == {"prompt": "", "chosen": "x", "rejected": "y"}


def test_a_prompt_of_the_same_form_is_kept() -> None:
    assert maybe_extract_prompt(SPLIT) is SPLIT
    assert maybe_extract_prompt({**PAIR, "prompt": "q"}) == SPLIT
    other = {"messages": [user("q")]}
    assert maybe_extract_prompt(other) is other


def test_pairs_are_taken_apart_with_their_other_columns() -> None:
    rows = Dataset.from_dict({"prompt": ["p", "q"], "chosen": ["a", "b"], "rejected": ["c", "d"], "id": [1, 2]})
    unpaired = unpair_preference_dataset(rows)
    assert unpaired[:] == {
        "prompt": ["p", "q", "p", "q"],
        "id": [1, 2, 1, 2],
        "completion": ["a", "b", "c", "d"],
        "label": [True, True, False, False],
    }
    assert maybe_unpair_preference_dataset(unpaired) is unpaired
    both = maybe_unpair_preference_dataset(DatasetDict({"train": rows}))
    assert len(both["train"]) == 4
    assert [row["label"] for row in unpair_preference_dataset(rows.to_iterable_dataset())] == [True, True, False, False]


def test_forms_of_conversations() -> None:
    old = {"conversations": [{"from": "user", "value": "q"}]}
    assert is_conversational_from_value(old) and not is_conversational(old)
    assert maybe_convert_to_chatml(old) == {"messages": [user("q")]}
    assert is_conversational({"prompt": [user("q")]}) and not is_conversational({"prompt": "q", "answer": [user("q")]})


@pytest.mark.parametrize(
    ("row", "texts"),
    [
        ({"messages": [user("q"), assistant("a")]}, {"text": "{q}{a}"}),
        ({"prompt": [user("q")]}, {"prompt": "{q}{open}"}),
        ({"prompt": [user("q")], "completion": [assistant("a")]}, {"prompt": "{q}{open}", "completion": "a{end}"}),
        (
            {"prompt": [user("q")], "completion": [assistant("a")], "label": True},
            {"prompt": "{q}{open}", "completion": "a{end}", "label": True},
        ),
        ({**SPLIT}, {"prompt": "{q}{open}", "chosen": "yes{end}", "rejected": "no{end}"}),
    ],
    ids=lambda value: "-".join(value),
)
def test_a_template_is_applied_to_every_form(row: dict[str, Any], texts: dict[str, Any]) -> None:
    parts = {
        "q": "<|im_start|>system\nYou are a helper.<|im_end|>\n<|im_start|>user\nq<|im_end|>\n",
        "a": "<|im_start|>assistant\na<|im_end|>\n",
        "open": "<|im_start|>assistant\n",
        "end": "<|im_end|>\n",
    }
    expected = {name: text.format(**parts) if isinstance(text, str) else text for name, text in texts.items()}
    tokenizer = toy_tokenizer("chatml")
    assert apply_chat_template(row, tokenizer) == maybe_apply_chat_template(row, tokenizer) == expected


def test_a_begun_answer_is_left_open() -> None:
    row = {"prompt": [user("q"), assistant("well")]}
    assert apply_chat_template(row, toy_tokenizer("chatml"))["prompt"].endswith("<|im_start|>assistant\nwell")


def test_rows_without_conversations_stay_and_unknown_forms_are_refused() -> None:
    row = {"prompt": "q"}
    assert maybe_apply_chat_template(row, None) is row
    with pytest.raises(DataError, match="chosen"):
        apply_chat_template({"chosen": []}, None)
    with pytest.raises(DataError, match="system"):
        apply_chat_template({"prompt": [{"role": "system", "content": "s"}]}, toy_tokenizer("chatml"))


def test_tools_and_the_rows_own_settings_reach_the_template() -> None:
    asked: list[dict[str, Any]] = []

    class Template:
        def apply_chat_template(self, messages: Any, **options: Any) -> str:
            asked.append(options)
            return "text"

    row = {"messages": [user("q")], "chat_template_kwargs": {"thinking": False, "depth": 1}}
    assert apply_chat_template(row, Template(), tools=["f"], depth=2) == {"text": "text"}
    assert asked == [{"tools": ["f"], "tokenize": False, "thinking": False, "depth": 2}]


def test_a_prompt_is_found_in_whatever_holds_the_messages() -> None:
    said = [user("a"), {"role": "assistant", "content": "b"}, user("c")]
    answers = [{"role": "assistant", "content": text} for text in "de"]
    chosen, rejected = ([*said, answer] for answer in answers)
    for one, other in ((tuple(chosen), rejected), (np.array(chosen, dtype=object), np.array(rejected, dtype=object))):
        parts = extract_prompt({"chosen": one, "rejected": other})
        assert [list(parts[name]) for name in ("prompt", "chosen", "rejected")] == [said, answers[:1], answers[1:]]
