"""OpenAI's dialect: what is honoured, what is refused and with which words, and the form of answers."""

from __future__ import annotations

import json

import pytest

from strop.agents.call_formats import ToolCall
from strop.agents.chat_api import ChatReply, ChatRequest, Refused, completion, events, read_request, reply_message
from strop.agents.spoken import Spoken

ASK = [{"role": "user", "content": "go"}]
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
CALLED = Spoken("x", "", "hm", "", "", "x", [ToolCall("add", {"a": 1}, id="000000000")])


def test_a_request_is_read_as_templates_have_it():
    call = {"type": "function", "id": "7", "function": {"name": "add", "arguments": '{"a": 1}'}}
    request = read_request({
        "model": "gpt-x", "stop": "X", "max_tokens": 5, "max_completion_tokens": 4, "temperature": 0.3, "tools": [TOOL],
        "messages": [
            {"role": "developer", "content": [{"type": "text", "text": "be "}, {"type": "text", "text": "brief"}]},
            {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None, "annotations": []},
            {"role": "tool", "tool_call_id": "7", "content": "1"},
        ],
    })  # fmt: skip
    read = {**call, "function": {"name": "add", "arguments": {"a": 1}}}
    assert request.messages == [
        {"role": "system", "content": "be brief"},
        {"role": "assistant", "content": "", "tool_calls": [read]},
        {"role": "tool", "content": "1", "tool_call_id": "7", "name": "add"},
    ]  # fmt: skip
    assert (request.stop, request.max_tokens, request.calling, request.model) == (("X",), 4, True, "gpt-x")
    assert request.sampling == {"temperature": 0.3}
    assert not read_request({"messages": ASK, "tools": [TOOL], "tool_choice": "none"}).calling


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"messages": []}, "at least one message"),
        ({"messages": [{"role": "function", "content": ""}]}, r"messages\[0\].*role.*'function'"),
        ({"messages": [*ASK, {"role": "assistant", "content": "so"}]}, "last message is the assistant's"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "parts of type text"),
        ({"n": 2}, "n is served as 1 only; got 2"),
        ({"tool_choice": "required"}, '"auto" or "none" only'),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": 3}, "stop"),
        ({"tools": [{"name": "add"}]}, "tools must be"),
        ({"guided_json": {}}, "does not know \\['guided_json'\\]"),
    ],
)
def test_what_is_not_served_is_refused_with_a_sentence(change, said):
    with pytest.raises(Refused, match=said) as caught:
        read_request({"messages": ASK, **change})
    assert caught.value.status == 400 and caught.value.body()["error"]["type"] == "invalid_request_error"


def test_calls_words_and_stop_strings_in_the_answer():
    message = reply_message(CALLED, ChatRequest(ASK))
    assert message["content"] is None and message["reasoning_content"] == "hm"
    assert message["tool_calls"][0] == {
        "id": "000000000", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'},
    }  # fmt: skip
    broken = Spoken("{", "", words="", bare="{", calls=[ToolCall("", {}, "no JSON", "000000000")])
    assert reply_message(broken, ChatRequest(ASK)) == {"role": "assistant", "content": "{"}
    cut = reply_message(Spoken("a END b", "", words="a END b", bare="a END b"), ChatRequest(ASK, stop=("zzz", "END")))
    assert cut["content"] == "a "


def test_a_stream_has_what_one_answer_has():
    request = ChatRequest(ASK, stream=True, stream_usage=True, logprobs=True)
    reply = ChatReply(reply_message(CALLED, request), "tool_calls", 3, [("x", -0.5)])
    whole = completion(request, reply)
    lines = events(request, reply).split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    first, ended, usage = (json.loads(line.removeprefix("data: ")) for line in lines[:-2])
    (choice,), (last,) = first["choices"], ended["choices"]
    assert choice["delta"]["tool_calls"] == [{"index": 0, **whole["choices"][0]["message"]["tool_calls"][0]}]
    assert choice["logprobs"] == whole["choices"][0]["logprobs"] and last["finish_reason"] == "tool_calls"
    assert whole["choices"][0]["logprobs"]["content"][0] == {
        "token": "x", "logprob": -0.5, "bytes": [120], "top_logprobs": [],
    }  # fmt: skip
    assert usage["usage"] == whole["usage"] == {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
