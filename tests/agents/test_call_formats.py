"""Calls are read as every family writes them, and JSON that calls nothing is none."""

from __future__ import annotations

import pytest

from strop.agents.call_formats import ANY, FORMATS, ToolCall, format_of
from strop.agents.spoken import read_turn

CALL = ToolCall("f", {"x": 1})
WRITTEN = {
    "tagged JSON": '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>',
    "tagged parameters": "<tool_call>\n<function=f>\n<parameter=x>\n1\n</parameter>\n</function>\n</tool_call>",
    "argument keys and values": "<tool_call>f\n<arg_key>x</arg_key>\n<arg_value>1</arg_value>\n</tool_call>",
    "bare JSON": '{"name": "f", "parameters": {"x": 1}}',
    "Mistral list": '[TOOL_CALLS] [{"name": "f", "arguments": {"x": 1}}]',
    "Mistral names": '[TOOL_CALLS]f[ARGS]{"x": 1}',
    "Python list": "<|tool_call_start|>[f(x=1)]<|tool_call_end|>",
    "DeepSeek": (
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{"x": 1}\n```<｜tool▁call▁end｜>'
        "<｜tool▁calls▁end｜>"
    ),
    "harmony": ' to=functions.f<|channel|>commentary json<|message|>{"x": 1}<|call|>',
    "tool_call list": '<|tool_call|>[{"name": "f", "arguments": {"x": 1}}]<|/tool_call|>',
    "call and braces": "<|tool_call>call:f{x:1}<tool_call|>",
    "TOOLCALL list": '<TOOLCALL>[{"name": "f", "arguments": {"x": 1}}]</TOOLCALL>',
    "actions": '<|START_ACTION|>[{"tool_call_id": "0", "tool_name": "f", "parameters": {"x": 1}}]<|END_ACTION|>',
    "action list": 'Action: ```json\n[{"tool_name": "f", "parameters": {"x": 1}}]\n```',
    "JSON among words": 'I call it: {"name": "f", "arguments": {"x": 1}}',
}
SCHEMAS = {"f": {"parameters": {"properties": {"x": {"type": "integer"}, "s": {"type": "string"}}}}}


@pytest.mark.parametrize("name", WRITTEN)
def test_a_format_is_known_by_what_a_template_prints(name):
    found = format_of(WRITTEN[name], [CALL])
    assert found is not None and found.name == name
    assert read_turn(WRITTEN[name], "", ANY, SCHEMAS).calls == [CALL]


def test_every_format_is_tried_here():
    assert {form.name for form in FORMATS} == set(WRITTEN)


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "Bob", "age": 3}',
        "The answer is 42.",
        '<think>I could say <tool_call>{"name": "f", "arguments": {"x": 9}}</tool_call> but no</think>It is 3',
        '{"name": "g", "arguments": {}}',
        "[1, 2, 3]",
    ],
)
def test_an_answer_that_calls_no_tool_is_no_call(text):
    assert read_turn(text, "", ANY, SCHEMAS).calls == []


def test_what_cannot_be_made_says_why():
    def problem(text):
        return read_turn(text, "", ANY, SCHEMAS).calls[0].problem or ""

    assert "not valid JSON" in problem("<tool_call>{oops}</tool_call>")
    assert "not valid JSON" in problem('<tool_call>{"name": "f", "arguments": {"x": 1,}}</tool_call>')
    assert "nested too deeply" in problem('<tool_call>{"a": ' + "[" * 90_000 + "}</tool_call>")
    assert "a name and an object" in problem('<tool_call>{"name": "f", "arguments": [1]}</tool_call>')


@pytest.mark.parametrize(
    "schema",
    [None, {}, {"parameters": []}, {"parameters": {"properties": {"x": True}}}, {"parameters": {"properties": 3}}],
)
def test_an_agents_schema_may_be_anything(schema):
    form = next(form for form in FORMATS if form.name == "argument keys and values")
    written = "<tool_call>f\n<arg_key>x</arg_key>\n<arg_value>1</arg_value>\n</tool_call>"
    ((_, _, (call,)),) = form.read(written, {"f": schema})
    assert call.arguments == {"x": 1}


def test_two_calls_and_bare_values():
    two = '{"name": "f", "parameters": {"x": 1}}; {"name": "f", "parameters": {"x": 2}}'
    assert [call.arguments["x"] for call in read_turn(two, "", ANY, SCHEMAS).calls] == [1, 2]
    bare = "<tool_call><function=f><parameter=x>\n7\n</parameter><parameter=s>\n7\n</parameter></function></tool_call>"
    assert read_turn(bare, "", ANY, SCHEMAS).calls == [ToolCall("f", {"x": 7, "s": "7"})]


def test_thoughts_words_and_calls_are_told_apart():
    text = '<think>\nhm\n</think>\n\nLook:\n<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>'
    said = read_turn(text, "<|im_end|>", ANY, SCHEMAS, specials=("<|im_end|>",))
    assert (said.thought, said.words, said.calls) == ("hm", "Look:", [CALL])
    assert said.message() == {
        "role": "assistant", "content": "Look:", "reasoning_content": "hm",
        "tool_calls": [{"type": "function", "id": "000000000", "function": {"name": "f", "arguments": {"x": 1}}}],
    }  # fmt: skip
    opened = read_turn("hm</think>yes", "", ANY, SCHEMAS, thinking=("<think>", "</think>"))
    assert (opened.thought, opened.words) == ("hm", "yes")


@pytest.mark.parametrize("written", ["...", "{1, 2}", "b'a'", "1j"])
def test_python_that_json_cannot_hold_is_text_or_a_call_that_cannot_be_made(written):
    """Arguments go to agents and templates as JSON; `...` is what models write where they leave something out."""
    (call,) = read_turn(WRITTEN["tagged parameters"].replace("1", written), "", ANY, {}).calls
    assert call.arguments == {"x": written} and call.problem is None
    (call,) = read_turn(WRITTEN["Python list"].replace("1", written), "", ANY, {}).calls
    assert call.problem is not None and call.arguments == {}
