"""Messages that say that they are not learned, and tool calls in the form that a template wants."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.tokenizers import toy_tokenizer

from strop.data import TokenizeOptions, prepare
from strop.errors import DataError

OFF = [
    ("weight", 0), ("train", False), ("training", False), ("trainable", False), ("loss_mask", 0), ("masked", True),
    ("loss", False), ("loss_weight", 0.0), ("loss_scale", 0), ("train_on_turn", False), ("learn", 0), ("mask_loss", 1),
]  # fmt: skip


def talk(key: str, value: Any) -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "bad bad", key: value},
        {"role": "user", "content": "again"},
        {"role": "assistant", "content": "good", key: type(value)(not value)},
    ]


def learned(example: Any, tokenizer: Any, index: int = 0) -> str:
    return tokenizer.decode([t for t, on in zip(example.completions[index], example.mask(index), strict=True) if on])


@pytest.mark.parametrize(("key", "value"), OFF)
@pytest.mark.parametrize("variant", ["chatml", "chatml_generation"])
def test_a_message_that_is_not_to_be_learned_is_not(key: str, value: Any, variant: str) -> None:
    tokenizer = toy_tokenizer(variant)
    only = TokenizeOptions(assistant_only_loss=True)
    (example,) = prepare([{"messages": talk(key, value)}], "language_modeling", tokenizer, only)
    assert learned(example, tokenizer) == "good<|im_end|>"
    (whole,) = prepare([{"messages": talk(key, value)}], "language_modeling", tokenizer)
    assert "bad" not in learned(whole, tokenizer) and "again" in learned(whole, tokenizer)


def test_flags_in_completions() -> None:
    tokenizer = toy_tokenizer("chatml")
    prompt, said = [{"role": "user", "content": "hi"}], talk("weight", 0)[1:]
    row = {"prompt": prompt, "chosen": said, "rejected": [{"role": "assistant", "content": "no"}]}
    (pair,) = prepare([row], "preference", tokenizer)
    assert learned(pair, tokenizer) == "good<|im_end|>" and learned(pair, tokenizer, 1) == "no<|im_end|>"
    nothing = {"prompt": prompt, "completion": [said[0]]}
    report = prepare([nothing, {**nothing, "completion": [said[2]]}], "prompt_completion", tokenizer).report
    assert report.left_out["nothing_scored"].first[0][0] == 0


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        ({"role": "assistant", "content": "x", "weight": 0.5}, "message 1 has the number 0.5 as its weight"),
        ({"role": "assistant", "content": "x", "train": "no"}, "message 1 has the string 'no' as its train"),
        ({"role": "assistant", "content": "x", "loss": 0.5}, "message 1 has the number 0.5 as its loss"),
        ({"role": "assistant", "content": "x", "mask": 0}, "message 1 has a .mask., which hides it in some data"),
        ({"role": "user", "content": "x", "train": True}, "a flag to learn another's message"),
    ],
)
def test_flags_that_cannot_be_honoured(message: dict[str, Any], problem: str) -> None:
    rows = [{"messages": [{"role": "user", "content": "hi"}, message]}]
    with pytest.raises(DataError, match=problem):
        prepare(rows, "language_modeling", toy_tokenizer("chatml"), TokenizeOptions(assistant_only_loss=True))


def test_a_template_that_rewrites_history_cannot_hide_a_message() -> None:
    rows = [{"messages": talk("weight", 0)}]
    rows[0]["messages"][1]["content"] = "<think>hm</think>bad bad"
    with pytest.raises(DataError, match="it rewrites history, so a message that is not to be learned"):
        prepare(rows, "language_modeling", toy_tokenizer("chatml_think"))


BASE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}BODY{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CALLS = "{% for c in (m['tool_calls'] or []) %}{{ c['function']['name'] + ' ' + ARGS }}{% endfor %}"
AS_TEXT = CALLS.replace("ARGS", "c['function']['arguments']")
AS_OBJECT = CALLS.replace("ARGS", "(c['function']['arguments'] | tojson)")
TEMPLATES = {
    "text": "{{ m['content'] or '' }}" + AS_TEXT,
    "object": "{{ m['content'] or '' }}" + AS_OBJECT,
}


def call(arguments: Any, **content: Any) -> dict[str, Any]:
    function = {"name": "exec", "arguments": arguments}
    return {
        "messages": [
            {"role": "user", "content": "run ls"},
            {"role": "assistant", **content, "tool_calls": [{"type": "function", "function": function}]},
            {"role": "tool", "content": "a b"},
            {"role": "assistant", "content": "done"},
        ]
    }


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("content", [{}, {"content": None}, {"content": ""}], ids=["absent", "none", "empty"])
@pytest.mark.parametrize("arguments", ['{"cmd": "ls"}', {"cmd": "ls"}], ids=["text", "object"])
def test_tool_calls_in_the_form_that_the_template_wants(template: str, content: Any, arguments: Any) -> None:
    tokenizer = toy_tokenizer("chatml", chat_template=BASE.replace("BODY", TEMPLATES[template]))
    only = TokenizeOptions(assistant_only_loss=True)
    (example,) = prepare([call(arguments, **content)], "language_modeling", tokenizer, only)
    assert learned(example, tokenizer) == 'exec {"cmd": "ls"}<|im_end|>done<|im_end|>'


NONE = "{% if m['content'] is none %}" + AS_OBJECT + "{% else %}{{ m['content'] }}{% endif %}"


@pytest.mark.parametrize("body", ["{{ m['content'] }}", NONE], ids=["never", "only where content is None"])
def test_calls_that_the_template_does_not_print_are_said(body: str) -> None:
    tokenizer = toy_tokenizer("chatml", chat_template=BASE.replace("BODY", body))
    report = prepare([call({})], "language_modeling", tokenizer).report
    assert report.flags["calls_lost"].count == 1
