"""Messages are brought to one form."""

from __future__ import annotations

from typing import Any

import pytest

from strop.data.findings import RowProblem
from strop.data.messages import is_conversation, is_empty, read_messages, read_tools


def test_sharegpt() -> None:
    said = [("human", "a"), ("gpt", "b"), ("system", "c"), ("observation", "d"), ("function_call", "e")]
    roles = [m["role"] for m in read_messages([{"from": f, "value": v} for f, v in said], "conversations")]
    assert roles == ["user", "assistant", "system", "tool", "assistant"]


def test_content_parts_become_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"text": "b"}, "c"]
    assert read_messages([{"role": "user", "content": parts}], "m")[0]["content"] == "abc"


def test_none_is_left_out() -> None:
    (message,) = read_messages([{"role": "user", "content": "a", "name": None, "tool_calls": None}], "m")
    assert message == {"role": "user", "content": "a"}


def test_tool_calls() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": [1]}'}}
    (message,) = read_messages([{"role": "assistant", "content": None, "tool_calls": [call]}], "m")
    assert message["content"] == "" and message["tool_calls"][0]["function"]["arguments"] == {"x": [1]}
    (bare,) = read_messages([{"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{}"}]}], "m")
    assert bare["tool_calls"] == [{"name": "f", "arguments": {}}]
    assert "tool_calls" not in read_messages([{"role": "assistant", "content": "x", "tool_calls": []}], "m")[0]


def test_further_keys_are_kept() -> None:
    message = {"role": "assistant", "content": "x", "thinking": "hm", "name": "n"}
    assert read_messages([message], "m") == [message]


def test_unknown_roles() -> None:
    with pytest.raises(RowProblem, match="message 0 has the unknown role 'critic'"):
        read_messages([{"role": "critic", "content": "x"}], "m")


@pytest.mark.parametrize(
    ("value", "wanted"),
    [([], True), ([{"role": "user"}], True), ({"role": "user"}, True), ({"from": "x"}, True), ({"a": 1}, False),
     ("text", False), (["a"], False), (None, False), ([1], False)],
)  # fmt: skip
def test_is_conversation(value: Any, wanted: bool) -> None:
    assert is_conversation(value) is wanted


@pytest.mark.parametrize("value", [[{"a": 1}], '[{"a": 1}]', ['{"a": 1}']])
def test_tools_of_every_manner(value: Any) -> None:
    assert read_tools(value) == [{"a": 1}]


@pytest.mark.parametrize("value", [None, [], "[]", "", "null"])
def test_no_tools(value: Any) -> None:
    assert read_tools(value) is None


def test_is_empty() -> None:
    assert is_empty({"role": "assistant", "content": ""})
    assert not is_empty({"role": "assistant", "content": "", "thinking": "hm"})
    assert not is_empty({"role": "assistant", "content": " "})
