"""The plain text of prompts and completions, whether they are strings or message lists.

Verifiers, judges and step scorers read text. A message's content may be a string, null (an assistant that only calls
tools), or a list of parts of which the text ones count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from strop.errors import DataError


def completion_text(completion: Any) -> str:
    """What the assistant said: the string itself, or the content of the last assistant message.

    A list without an assistant message gives its last message; an empty list gives the empty string.
    """
    if isinstance(completion, str):
        return completion
    messages = _messages(completion)
    spoken = [message for message in messages if message.get("role", "assistant") == "assistant"] or messages
    return content_text(spoken[-1]) if spoken else ""


def prompt_text(prompt: Any) -> str:
    """The prompt as a person would read it: no chat tokens.

    A single user message is its content. Longer conversations are written as paragraphs `Role: content`.
    """
    if isinstance(prompt, str):
        return prompt
    messages = _messages(prompt)
    if len(messages) == 1:
        return content_text(messages[0])
    return "\n\n".join(f"{str(m.get('role', 'user')).capitalize()}: {content_text(m)}" for m in messages)


def content_text(message: Mapping[str, Any]) -> str:
    """The text of one message."""
    content = message.get("content")
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        return "".join(part if isinstance(part, str) else str(part.get("text") or "") for part in content)
    return str(content)


def is_conversational(text_or_messages: Any) -> bool:
    """Whether this is a message list rather than a string."""
    return not isinstance(text_or_messages, str)


def _messages(messages: Any) -> list[Mapping[str, Any]]:
    if isinstance(messages, Mapping):
        return [messages]
    if isinstance(messages, Sequence) and all(isinstance(message, Mapping) for message in messages):
        return list(messages)
    raise DataError(
        f"A prompt or completion must be a string or a list of messages {{'role', 'content'}}; "
        f"got a {type(messages).__name__}."
    )
