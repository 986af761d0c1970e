"""Calls as a tokenizer itself says that they are written: transformers' `response_template`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from strop.agents.call_formats import CallFormat, Found, ToolCall, call_of_object


def response_format(tokenizer: Any) -> CallFormat | None:
    """The format of `tokenizer.parse_response`; None for a tokenizer without a `response_template`.

    The parser gives messages and no places: what of a turn is not its words counts as its calls.
    """
    if getattr(tokenizer, "response_template", None) is None:
        return None

    def read(text: str, schemas: Mapping[str, Any]) -> Iterator[Found]:
        tools = [{"type": "function", "function": schema} for schema in schemas.values()]
        try:
            message = tokenizer.parse_response(text, prefix="", tools=tools or None)
        except Exception as error:  # a parser of any kind may stand in the template
            yield 0, len(text), [ToolCall("", {}, f"the turn cannot be read ({error}).")]
            return
        calls = [call_of_object(call) for call in message.get("tool_calls") or ()]
        if not calls:
            return
        words = message.get("content") or ""
        start = max(text.find(words), 0) if words else 0
        if start:
            yield 0, start, []
        yield start + len(words) * (words in text), len(text), calls

    return CallFormat("response template", read, needs_end=True)
