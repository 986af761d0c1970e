"""Conversations as trees: what opens an answer, what the assistant wrote, what tools said (R8 to R11)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.tokenizers import toy_tokenizer
from tests.support.trees import (
    ASKED,
    LANGUAGE,
    PAIRS,
    PROMPTS,
    assistant,
    build,
    learned,
    texts,
    user,
)

from strop.data import TokenizeOptions, prepare
from strop.testing.tokenizers import DEFAULT_SYSTEM

# ---- R8 generation prompt


def test_prompts_are_opened_for_an_answer() -> None:
    assert texts(build({"prompt": [user("hi")]}, PROMPTS, "chatml"), "chatml") == (ASKED, [])
    begun = build({"prompt": [user("hi"), assistant("well")]}, PROMPTS, "chatml")
    assert texts(begun, "chatml")[0] == ASKED + "well"
    tool = build({"prompt": [user("hi"), {"role": "tool", "content": "42"}]}, PROMPTS, "chatml_tools")
    assert texts(tool, "chatml_tools")[0].endswith("<r>42</r><|im_end|>\n<|im_start|>assistant\n")
    assert texts(build({"prompt": "hi"}, PROMPTS, "chatml"), "chatml") == ("hi", [])


def test_a_begun_answer_is_continued() -> None:
    row = {"prompt": [user("hi"), assistant("we")], "chosen": [assistant("ll")], "rejected": [assistant(" do")]}
    prompt, completions = texts(build(row, PAIRS, "chatml"), "chatml")
    assert [prompt + said for said in completions] == [ASKED + "well<|im_end|>", ASKED + "we do<|im_end|>"]


def test_a_whole_conversation_is_not_opened_again() -> None:
    text = texts(build({"messages": [user("hi"), assistant("yes")]}, LANGUAGE, "chatml"), "chatml")[1][0]
    assert text.endswith("yes<|im_end|>") and text.count("assistant") == 1


# ---- R9 joint rendering


def test_completions_hold_no_default_system_prompt() -> None:
    row = {"prompt": [user("hi")], "completion": [assistant("yes"), user("more"), assistant("no")]}
    prompt, (said,) = texts(build(row, LANGUAGE, "chatml"), "chatml")
    assert prompt.count(DEFAULT_SYSTEM) == 1 and DEFAULT_SYSTEM not in said


# ---- R10 assistant masks

TALK = [user("hi"), assistant("yes"), user("and"), assistant("no")]


@pytest.mark.parametrize("variant", ["chatml", "chatml_generation"])
def test_assistant_only_loss(variant: str) -> None:
    example = build({"messages": TALK}, LANGUAGE, variant, assistant_only_loss=True)
    assert learned(example, variant) == ["yes<|im_end|>no<|im_end|>"]
    prompt, (said,) = texts(example, variant)
    assert prompt.endswith("<|im_start|>assistant\n") and said.startswith("yes<|im_end|>\n<|im_start|>user\nand")


def test_assistant_only_loss_without_offsets() -> None:
    """A tokenizer that cannot tell which characters a token stands for gives the same mask."""
    fast = build({"messages": TALK}, LANGUAGE, "chatml", assistant_only_loss=True)
    tokenizer = toy_tokenizer("chatml")
    type(tokenizer).is_fast, kept = property(lambda self: False), type(tokenizer).is_fast
    try:
        slow = prepare([{"messages": TALK}], LANGUAGE, tokenizer, TokenizeOptions(assistant_only_loss=True))[0]
    finally:
        type(tokenizer).is_fast = kept
    assert slow == fast


def test_what_follows_the_last_answer_is_not_computed() -> None:
    example = build({"messages": [*TALK, user("bye")]}, LANGUAGE, "chatml", assistant_only_loss=True)
    assert texts(example, "chatml")[1][0].endswith("no<|im_end|>")


def test_an_assistant_who_speaks_first() -> None:
    example = build({"messages": [assistant("hello"), user("a"), assistant("b")]}, LANGUAGE, "chatml",
                    assistant_only_loss=True)  # fmt: skip
    assert learned(example, "chatml") == ["hello<|im_end|>b<|im_end|>"]


THINK = [user("a"), assistant("<think>x</think>one"), user("b"), assistant("<think>y</think>two")]


def test_history_that_is_rewritten_leaves_the_last_turn() -> None:
    data = prepare(
        [{"messages": THINK}], LANGUAGE, toy_tokenizer("chatml_think"), TokenizeOptions(assistant_only_loss=True)
    )
    assert learned(data[0], "chatml_think") == ["<think>y</think>two<|im_end|>"]
    assert "<think>x" not in texts(data[0], "chatml_think")[0]
    assert any("only the last answer is learned" in finding.message for finding in data.report.findings)


def test_marked_templates_learn_every_turn_as_rendered() -> None:
    marked = toy_tokenizer("chatml_think").chat_template.replace(
        "{{ '<|im_start|>' + message['role'] + '\n' + content + '<|im_end|>\n' }}",
        "{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['role'] == 'assistant' %}"
        "{% generation %}{{ content + '<|im_end|>\n' }}{% endgeneration %}"
        "{% else %}{{ content + '<|im_end|>\n' }}{% endif %}",
    )
    example = build({"messages": THINK}, LANGUAGE, "chatml", assistant_only_loss=True, chat_template=marked)
    # The marks enclose a line break after the end of turn, which no model generates: it is not learned.
    assert learned(example, "chatml") == ["one<|im_end|><think>y</think>two<|im_end|>"]


def test_both_masks_hold_together() -> None:
    row = {"prompt": TALK[:3], "completion": [assistant("no"), user("x"), assistant("end")]}
    for options in ({"assistant_only_loss": True}, {}):
        example = build(row, LANGUAGE, "chatml", **options)
        assert learned(example, "chatml") == ["no<|im_end|>end<|im_end|>"]
    whole = build(row, LANGUAGE, "chatml", assistant_only_loss=True, completion_only_loss=False)
    assert learned(whole, "chatml") == ["yes<|im_end|>no<|im_end|>end<|im_end|>"]


# ---- R11 tools

CALL = assistant("", tool_calls=[{"type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}])
TOOL = {"role": "tool", "content": "42"}
SCHEMA = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize("tools", [[SCHEMA], '[{"type": "function", "function": {"name": "f"}}]'])
def test_tools_reach_both_renderings_and_are_not_learned(tools: Any) -> None:
    row = {
        "prompt": [user("hi")],
        "chosen": [CALL, TOOL, assistant("good")],
        "rejected": [assistant("bad")],
        "tools": tools,
    }
    example = build(row, PAIRS, "chatml_tools")
    prompt, (chosen, _) = texts(example, "chatml_tools")
    assert prompt.startswith('<|im_start|>system\nTools: [{"type"') and "Tools" not in chosen
    assert learned(example, "chatml_tools") == ['<c>{"x": 1}</c><|im_end|>good<|im_end|>', "bad<|im_end|>"]
    assert example.extras["tools"] == [SCHEMA]


def test_tool_answers_are_not_learned_in_whole_conversations() -> None:
    example = build({"messages": [user("hi"), CALL, TOOL, TOOL, assistant("good")]}, LANGUAGE, "chatml_tools")
    (text,) = learned(example, "chatml_tools")
    assert "42" not in text and text.startswith("<|im_start|>user\nhi") and text.endswith("good<|im_end|>")


@pytest.mark.parametrize("tools", [[], "[]", None, ""])
def test_no_tools_are_no_tools(tools: Any) -> None:
    example = build({"prompt": [user("hi")], "tools": tools}, PROMPTS, "chatml_tools")
    assert "Tools" not in texts(example, "chatml_tools")[0] and "tools" not in example.extras


def test_tools_of_the_options_serve_every_row() -> None:
    def weather(city: str) -> str:
        """Tell the weather.

        Args:
            city: The city.
        """
        return city

    prompt = texts(build({"prompt": [user("hi")]}, PROMPTS, "chatml_tools", tools=(weather,)), "chatml_tools")[0]
    assert '"name": "weather"' in prompt and "The city." in prompt


def test_template_variables_of_the_row_win() -> None:
    template = "{{ mood }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    options = {"chat_template": template, "chat_template_kwargs": {"mood": "calm "}}
    assert texts(build({"prompt": [user("x")]}, PROMPTS, "chatml", **options))[0] == "calm x"
    row = {"prompt": [user("x")], "chat_template_kwargs": {"mood": "wild "}}
    assert texts(build(row, PROMPTS, "chatml", **options))[0] == "wild x"


# ---- for any text

text = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12)


@settings(max_examples=40, deadline=None)
@given(turns=st.lists(text, min_size=2, max_size=6))
def test_marked_and_incremental_masks_agree(turns: list[str]) -> None:
    messages = [user(t) if k % 2 == 0 else assistant(t) for k, t in enumerate(turns)]
    options = TokenizeOptions(assistant_only_loss=True)
    marked = prepare([{"messages": messages}], LANGUAGE, toy_tokenizer("chatml_generation"), options)[0]
    plain = toy_tokenizer("chatml_generation")
    plain.chat_template = plain.chat_template.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    incremental = prepare([{"messages": messages}], LANGUAGE, plain, options)[0]
    assert marked == incremental
    answers = "".join(m["content"] + "<|im_end|>" for m in messages if m["role"] == "assistant")
    assert learned(marked, "chatml_generation") == [answers]
