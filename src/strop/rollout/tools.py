"""Tools that a model may call: their description for the prompt, calls read from its text, answers as messages."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from strop.errors import ConfigError, did_you_mean

TAGGED = re.compile(r"<tool_call>\s*(\{.*?\})\s*</tool_call>", re.DOTALL)
MAX_ANSWER_CHARACTERS = 4000


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call that a model wrote; `problem` says what is wrong with one that cannot be made."""

    name: str
    arguments: Mapping[str, Any]
    problem: str | None = None


class Tools:
    """Python functions with type hints and docstrings, by name.

    Raises:
        ConfigError: two of one name, or a function that cannot be described (no docstring or type hints).
    """

    def __init__(self, functions: Sequence[Callable[..., Any]]) -> None:
        from transformers.utils import get_json_schema

        self.functions = {function.__name__: function for function in functions}
        problems = []
        if len(self.functions) < len(functions):
            problems.append("two tools have the same name; rename one.")
        self.schemas: list[dict[str, Any]] = []
        for name, function in self.functions.items():
            try:
                self.schemas.append(get_json_schema(function))
            except Exception as error:  # its many kinds all mean that the description is incomplete
                problems.append(f"{name}: {error} Give it type hints and a docstring with an Args section.")
        if problems:
            raise ConfigError.collect("These tools cannot be offered to the model:", problems)

    def answer(self, call: ToolCall) -> tuple[str, bool]:
        """What the tool says, as text, and whether the call worked. An exception becomes words for the model."""
        if call.problem is not None:
            return f"Error: {call.problem}", False
        function = self.functions.get(call.name)
        if function is None:
            return f"Error: there is no tool '{call.name}'.{did_you_mean(call.name, self.functions)}", False
        try:
            result = function(**call.arguments)
        except Exception as error:
            return f"Error: {type(error).__name__}: {error}"[:MAX_ANSWER_CHARACTERS], False
        text = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, default=str)
        return text[:MAX_ANSWER_CHARACTERS], True


def read_calls(text: str) -> list[ToolCall]:
    """Tool calls in a model's turn: JSON between <tool_call> tags, or a turn that is one JSON object with a name."""
    blocks = TAGGED.findall(text)
    if not blocks and text.strip().startswith("{") and '"name"' in text:
        blocks = [text.strip()]
    return [_read_call(block) for block in blocks]


def _read_call(block: str) -> ToolCall:
    try:
        call = json.loads(block)
    except ValueError as error:
        return ToolCall("", {}, f"the call is not valid JSON ({error}).")
    if isinstance(call.get("function"), dict):
        call = call["function"]
    arguments = call.get("arguments", call.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            return ToolCall(str(call.get("name")), {}, "the arguments are not valid JSON.")
    if not isinstance(call.get("name"), str) or not isinstance(arguments, dict):
        return ToolCall(str(call.get("name")), {}, "a call needs a name and an object of arguments.")
    return ToolCall(call["name"], arguments)
