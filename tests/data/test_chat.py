"""Rendering conversations: text, spans, refusals."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.tokenizers import toy_tokenizer

from strop.data.chat import Chat, Unrenderable
from strop.data.encode import Encoder
from strop.data.options import TokenizeOptions


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def chat(variant: str, **options: Any) -> Chat:
    return Chat(Encoder(toy_tokenizer(variant), TokenizeOptions(**options)))


TALK = [user("a"), assistant("b"), user("c"), assistant("d")]


@pytest.mark.parametrize("variant", ["chatml", "chatml_generation", "chatml_tools", "llama"])
def test_answer_spans(variant: str) -> None:
    renderer = chat(variant)
    text = renderer.render_whole(TALK, None, {})
    spans, complete = renderer.answer_spans(TALK, None, {}, text)
    end = "</s>" if variant == "llama" else "<|im_end|>"
    assert complete and [text[a:b].strip() for a, b in spans] == [f"b{end}", f"d{end}"]
    later, _ = renderer.answer_spans(TALK, None, {}, text, first=2)
    assert later == spans[1:]


def test_rewritten_history() -> None:
    renderer = chat("chatml_think")
    talk = [user("a"), assistant("<think>x</think>b"), user("c"), assistant("<think>y</think>d")]
    text = renderer.render_whole(talk, None, {})
    spans, complete = renderer.answer_spans(talk, None, {}, text)
    assert not complete and [text[a:b] for a, b in spans] == ["<think>y</think>d<|im_end|>"]


def test_hidden_spans() -> None:
    renderer = chat("chatml_tools")
    talk = [
        user("a"),
        assistant("b"),
        {"role": "tool", "content": "1"},
        {"role": "tool", "content": "2"},
        assistant("d"),
    ]
    text = renderer.render_whole(talk, None, {})
    ((start, end),) = renderer.hidden_spans(talk, None, {}, text) or []
    assert text[start:end] == "<|im_start|>user\n<r>1</r>\n<r>2</r><|im_end|>\n"
    assert chat("chatml").hidden_spans(TALK, None, {}, renderer.render_whole(TALK, None, {})) == []


@pytest.mark.parametrize(
    ("text", "strip", "wanted"),
    [
        ("a<|im_end|>\n", True, "a<|im_end|>"),
        ("a<|im_end|> \n\n", True, "a<|im_end|>"),
        ("a<|im_end|>\nb\n", True, "a<|im_end|>\nb\n"),
        ("a \n", True, "a \n"),
    ],
)
def test_strip_tail(text: str, strip: bool, wanted: str) -> None:
    assert chat("chatml").strip_tail(text) == wanted


def test_refusals_are_one_line() -> None:
    with pytest.raises(Unrenderable, match=r"^system must come first$"):
        chat("chatml_strict").render([user("a"), {"role": "system", "content": "s"}], None, {})
    with pytest.raises(Unrenderable):
        chat("chatml", chat_template="{{ messages[9]['content'] + 1 }}").render([user("a")], None, {})
    with pytest.raises(Unrenderable):
        chat("chatml", chat_template="{% if %}").generation_mask([user("a")], None, {})


def test_generation_marks() -> None:
    assert chat("chatml_generation").marks_generation(None) and not chat("chatml").marks_generation(None)
    assert chat("chatml", chat_template="{%- generation -%}x{%- endgeneration -%}").marks_generation(None)
