from __future__ import annotations

import pytest

from strop.errors import DataError
from strop.rewards.texts import completion_text, is_conversational, prompt_text


def said(content, role="assistant"):
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    ("completion", "text"),
    [
        ("plain", "plain"),
        ([said("hello")], "hello"),
        ([{"content": "no role"}], "no role"),
        ([said("first"), said("42", "tool"), said("last")], "last"),
        ([said("asked"), said("42", "tool")], "asked"),
        ([said(None)], ""),
        ([said([{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}])], "ab"),
        (said("one message"), "one message"),
        ([], ""),
        ([said("only a tool", "tool")], "only a tool"),
    ],
)
def test_completion_text(completion, text):
    assert completion_text(completion) == text


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("plain", "plain"),
        ([said("2 + 2?", "user")], "2 + 2?"),
        ([said("Be brief.", "system"), said("2 + 2?", "user")], "System: Be brief.\n\nUser: 2 + 2?"),
        ([], ""),
    ],
)
def test_prompt_text(prompt, text):
    assert prompt_text(prompt) == text


@pytest.mark.parametrize("wrong", [5, None, ["a", "b"]])
def test_neither_text_nor_messages(wrong):
    with pytest.raises(DataError, match="must be a string or a list of messages"):
        completion_text(wrong)


def test_is_conversational():
    assert is_conversational([said("x")]) and not is_conversational("x")
