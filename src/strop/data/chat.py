"""Conversations -> text, by the chat template, and which characters of it the assistant wrote.

Completions are never rendered alone (rule R9): a template may add a default system prompt, a date or BOS to whatever
comes first. A completion is the end of the joint rendering.
"""

from __future__ import annotations

import json
import re
from contextlib import nullcontext
from itertools import groupby
from typing import Any

from strop.data.encode import Encoder
from strop.data.messages import Message, is_hidden
from strop.data.patience import TooSlow, ends_within
from strop.errors import ConfigError

RENDER_S = 10.0
"""Seconds for the first conversation that a template renders."""
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
Spans = list[tuple[int, int]]


class Unrenderable(Exception):
    """The template refused a conversation. Turned into a row problem or a counted row; it never reaches a user."""


class Chat:
    """A tokenizer's chat template, or the one that the options name."""

    def __init__(self, encoder: Encoder) -> None:
        self.tokenizer = encoder.tokenizer
        self.options = encoder.options
        self.template = self.options.template()
        self.has_ended = False  # a conversation has been rendered
        stop_texts = (self.tokenizer.convert_ids_to_tokens(token) for token in sorted(encoder.stops))
        self.stop_texts = tuple(text for text in stop_texts if text)

    def require(self) -> None:
        """Raise `ConfigError` if there is no template."""
        if self.template is None and not getattr(self.tokenizer, "chat_template", None):
            raise ConfigError(
                "The rows are conversations, but the tokenizer has no chat template. Give chat_template_path (a Jinja "
                "file or a model folder), or use a tokenizer of an instruct model, or rows of plain text."
            )

    def marks_generation(self, tools: list[Any] | None) -> bool:
        """Whether the template marks the assistant's words with `{% generation %}`."""
        return bool(GENERATION.search(self.tokenizer.get_chat_template(self.template, tools) or ""))

    def render(self, messages: list[Message], tools: list[Any] | None, kwargs: dict[str, Any], **ending: bool) -> str:
        """The text of a conversation; `ending` may be add_generation_prompt or continue_final_message."""
        return self._apply(messages, tools, {**kwargs, **ending, "tokenize": False})

    def _apply(self, messages: list[Message], tools: list[Any] | None, settings: dict[str, Any]) -> Any:
        """What the template makes of messages, in the form that it wants: with tool-call arguments as objects (to be
        printed by `tojson`), or as JSON text where it joins them to text and objects raise."""
        forms = [messages]
        if any(message.get("tool_calls") for message in messages):
            forms.append([with_text_arguments(message) for message in messages])
        first: Exception | None = None
        for form in forms:
            try:
                # One rendering is enough to find a template that loops; a watch on each would cost more than they do.
                with nullcontext() if self.has_ended else ends_within(RENDER_S):
                    text = self.tokenizer.apply_chat_template(
                        form, tools=tools, chat_template=self.template, **settings
                    )
                self.has_ended = True
                return text
            except TooSlow:
                raise ConfigError(
                    f"The chat template has not rendered one conversation in {RENDER_S:g} s: it loops. "
                    "Give another one (chat_template_path)."
                ) from None
            except Exception as problem:  # a template is code of its author: it may raise anything
                first = first or problem
        said = str(first).strip().splitlines() or [type(first).__name__]
        raise Unrenderable(said[0][:200]) from None

    def render_prompt(self, messages: list[Message], tools: list[Any] | None, kwargs: dict[str, Any]) -> str:
        """The text of a prompt, opened for an answer: a new turn, or the rest of a begun one (rule R8)."""
        if messages[-1]["role"] == "assistant":
            return self.render(messages, tools, kwargs, continue_final_message=True)
        return self.render(messages, tools, kwargs, add_generation_prompt=True)

    def render_whole(self, messages: list[Message], tools: list[Any] | None, kwargs: dict[str, Any]) -> str:
        """The text of a finished conversation, without what the template prints after the last end of turn."""
        text = self.render(messages, tools, kwargs)
        return self.strip_tail(text) if self.options.strip_after_eos else text

    def strip_tail(self, text: str) -> str:
        """`text` without white space after its last stop token (rule R3)."""
        bare = text.rstrip()
        return bare if bare.endswith(self.stop_texts) else text

    def generation_mask(
        self, messages: list[Message], tools: list[Any] | None, kwargs: dict[str, Any]
    ) -> tuple[list[int], list[int]]:
        """Ids and 0/1 mask of a whole conversation, from the template's `{% generation %}` marks."""
        wanted = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
        found = self._apply(messages, tools, {**kwargs, **wanted})
        return list(found["input_ids"]), [int(on) for on in found["assistant_masks"]]

    def answer_spans(
        self, messages: list[Message], tools: list[Any] | None, kwargs: dict[str, Any], text: str, first: int = 0
    ) -> tuple[Spans, bool]:
        """Characters of `text`, the whole rendering, that the assistant wrote, and whether all its turns are there.

        The turn of message k is what rendering k + 1 messages adds to rendering k messages with the answer opened.
        It holds only if both renderings begin `text` (rule R10): a template that rewrites history (one that drops
        earlier thinking) breaks this, and then the last turn alone is returned.

        Args:
            first: turns before this message are not wanted.
        """
        spans: Spans = []
        answers = [k for k in range(first, len(messages)) if messages[k]["role"] == "assistant"]
        for k in answers:
            span = self._turn_span(messages, k, tools, kwargs, text)
            if span is not None:
                spans.append(span)
        complete = len(spans) == len(answers)
        if complete or not answers:
            return spans, complete
        last = self._turn_span(messages, answers[-1], tools, kwargs, text)
        return ([] if last is None else [last]), False

    def _turn_span(
        self, messages: list[Message], k: int, tools: list[Any] | None, kwargs: dict[str, Any], text: str
    ) -> tuple[int, int] | None:
        if k:
            opening: str | None = self.render(messages[:k], tools, kwargs, add_generation_prompt=True)
        else:
            opening = self._opening_of_first(kwargs, text)
        closed = text if k == len(messages) - 1 else self.render(messages[: k + 1], tools, kwargs)
        closed = self.strip_tail(closed) if self.options.strip_after_eos else closed
        if opening is None or not text.startswith(opening) or not text.startswith(closed):
            return None
        return (len(opening), len(closed)) if len(closed) > len(opening) else None

    def _opening_of_first(self, kwargs: dict[str, Any], text: str) -> str | None:
        """The rendering up to the words of an assistant who speaks first: up to the header that opens an answer."""
        probe = [{"role": "user", "content": ""}]
        closed = self.render(probe, None, kwargs)
        opened = self.render(probe, None, kwargs, add_generation_prompt=True)
        header = opened[len(closed) :] if opened.startswith(closed) else ""
        found = text.find(header) if header else -1
        return text[: found + len(header)] if found >= 0 else None

    def hidden_spans(
        self, messages: list[Message], tools: list[Any] | None, kwargs: dict[str, Any], text: str
    ) -> Spans | None:
        """Characters of `text` that tools said (rule R11) or whose message says that it is not learned.

        None if the template rewrites history, so that they cannot be found.
        """
        spans: Spans = []
        end = 0
        for hidden, run in groupby(messages, key=is_hidden):
            start, end = end, end + len(list(run))
            if hidden:
                before = self.render(messages[:start], tools, kwargs) if start else ""
                after = text if end == len(messages) else self.render(messages[:end], tools, kwargs)
                if not text.startswith(before) or not text.startswith(after):
                    return None
                spans.append((len(before), len(after)))
        return spans


def with_text_arguments(message: Message) -> Message:
    """A message whose tool calls have their arguments as JSON text."""

    def as_text(call: Message) -> Message:
        if isinstance(call.get("function"), dict):
            return {**call, "function": as_text(call["function"])}
        arguments = call.get("arguments")
        return call if isinstance(arguments, str) else {**call, "arguments": json.dumps(arguments, ensure_ascii=False)}

    return {**message, "tool_calls": list(map(as_text, message["tool_calls"]))} if "tool_calls" in message else message


def loses_calls(messages: list[Message], text: str) -> bool:
    """Whether a rendering lacks the name of a function that the messages call: the template prints no calls, or only
    those of a form that `apply_chat_template` does not hand to it (a content that is None)."""
    calls = [call for message in messages for call in message.get("tool_calls", ())]
    names = [(call.get("function") or call).get("name") for call in calls]
    return any(isinstance(name, str) and name not in text for name in names)
