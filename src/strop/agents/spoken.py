"""What a model said in one turn: its thoughts, its words, its calls of tools.

Read from the text of the sampled ids, special tokens included: many formats are made of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from strop.agents.call_formats import CallFormat, ToolCall

THOUGHTS: tuple[tuple[str, str], ...] = (
    ("<think>", "</think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel|>analysis<|message|>", "<|end|>"),
    ("<|channel>thought\n", "<channel|>"),
    ("[THINK]", "[/THINK]"),
)
"""What stands around a model's thoughts."""
WRAPPINGS = re.compile(
    r"<\|START_RESPONSE\|>|<\|END_RESPONSE\|>|<\|START_TEXT\|>|<\|END_TEXT\|>|(?:<\|start\|>assistant)?<\|channel\|>(?:final|commentary)<\|message\|>"
)
"""What stands around an answer's words and is no part of them."""


@dataclass(slots=True)
class Spoken:
    """One turn of the model."""

    text: str  # as sampled, special tokens included, without the token that ended it
    end: str  # text of the token that ended it, "" where a stop string did
    thought: str = ""
    thinking: str = ""  # the same with what stands around it
    words: str = ""
    bare: str = ""  # the whole text without special tokens
    calls: list[ToolCall] = field(default_factory=list)
    dropped: int = 0  # calls that the template could not print beside the first

    def message(self) -> dict[str, Any]:
        """The turn as rewards see it."""
        said: dict[str, Any] = {"role": "assistant", "content": self.words}
        if self.thought:
            said["reasoning_content"] = self.thought
        if self.calls:
            said["tool_calls"] = list(map(call_message, self.calls))
        return said


def call_message(call: ToolCall) -> dict[str, Any]:
    """A call as chat templates and OpenAI's dialect write it."""
    function = {"name": call.name, "arguments": dict(call.arguments)}
    return {"type": "function", "id": call.id, "function": function}


def numbered(calls: Sequence[ToolCall], first: int = 0) -> list[ToolCall]:
    """Calls with ids of nine letters and digits, as the strictest templates want them."""
    return [replace(call, id=f"{number:09d}") for number, call in enumerate(calls, first)]


def read_turn(
    text: str,
    end: str,
    form: CallFormat | None,
    schemas: Mapping[str, Any],
    *,
    thinking: tuple[str, str] | None = None,
    specials: Sequence[str] = (),
    calls_before: int = 0,
) -> Spoken:
    """Thoughts, words and calls of a turn.

    Args:
        text: the turn, special tokens included, without the token that ended it.
        end: text of that token.
        form: how calls are written; None: there are no tools.
        schemas: the tools' JSON schemas by name.
        thinking: the marks of thoughts that the generation prompt has opened already.
        specials: special tokens, which are no words.
        calls_before: calls of earlier turns, which call ids go on counting from.
    """
    thought, rest = split_thought(text, thinking)
    calls, words = ([], rest) if form is None else form.take(rest, end, schemas)
    words, bare = without(WRAPPINGS.sub("", words), specials), without(text, specials)
    if thought or calls:
        words = words.strip()
    return Spoken(text, end, thought, text[: len(text) - len(rest)], words, bare, numbered(calls, calls_before))


def without(text: str, specials: Sequence[str]) -> str:
    for special in specials:
        text = text.replace(special, "")
    return text


def split_thought(text: str, opened: tuple[str, str] | None) -> tuple[str, str]:
    """The thoughts at the start of a turn, and what follows them."""
    if opened is not None:
        thought, closed, rest = text.partition(opened[1])
        return (thought.strip(), rest) if closed else (text.strip(), "")
    for begin, end in THOUGHTS:
        if text.lstrip().startswith(begin):
            thought, closed, rest = text.lstrip()[len(begin) :].partition(end)
            return thought.strip(), rest if closed else ""
    return "", text


def thinking_at(opened: str) -> tuple[str, str] | None:
    """The marks of thoughts that a generation prompt ends in."""
    bare = opened.rstrip()
    return next((marks for marks in THOUGHTS if bare.endswith(marks[0].strip())), None)
