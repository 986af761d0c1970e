"""Conversations: check a list of messages and bring it to one form (role, content, tool calls)."""

from __future__ import annotations

import json
from typing import Any

from strop.data.findings import RowProblem, kind_of_value
from strop.data.rows import from_json
from strop.errors import did_you_mean

Message = dict[str, Any]
ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")
TOOL_ROLES = ("tool", "function", "ipython")
"""Roles that carry what a tool said: never written by the model, so never scored (rule R11)."""
SHAREGPT = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "assistant", "model", "bot", "function_call"), "assistant"),
    **dict.fromkeys(("system",), "system"),
    **dict.fromkeys(("tool", "observation", "function_response"), "tool"),
}
"""Who speaks in a ShareGPT `from`, and the role it is."""
FLAGS = {
    **dict.fromkeys(("weight", "train", "training", "trainable", "loss_mask", "loss", "loss_weight", "loss_scale"), 1),
    **dict.fromkeys(("train_on_turn", "is_trainable", "learn"), 1),
    **dict.fromkeys(("masked", "is_masked", "mask_loss"), 0),
}
"""Keys of a message that say whether it is learned, and the value that says yes."""
EITHER_WAY = "mask"
"""A key that says yes with 1 in some data and with 0 in others."""


def is_conversation(value: Any) -> bool:
    """Whether a column's value is meant as messages: a list (empty or of objects), or a single message."""
    if isinstance(value, dict):
        return "role" in value or "from" in value
    return isinstance(value, list | tuple) and (not value or isinstance(value[0], dict))


def read_messages(value: Any, column: str) -> list[Message]:
    """The messages of a column in one form: `role`, `content` (a string), and whatever else each one carries.

    ShareGPT's `from` / `value` becomes `role` / `content`; text parts are joined; keys that are None are left out;
    JSON strings in tool calls are parsed. Raises `RowProblem`.
    """
    if isinstance(value, dict) and is_conversation(value):
        value = [value]
    if not isinstance(value, list | tuple):
        raise RowProblem(column, f"is {kind_of_value(value)}, not messages", _fix_for(value))
    if not value:
        raise RowProblem(column, "is an empty list of messages", "Write at least one message, or remove the row")
    read = []
    for number, message in enumerate(value):
        try:
            read.append(_read_message(message))
        except RowProblem as found:
            raise RowProblem(column, f"message {number} {found.message}", found.fix) from None
    return read


def _fix_for(value: Any) -> str:
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        return "It looks like JSON inside a string: parse it with json.loads before training"
    return 'Write a list like [{"role": "user", "content": "..."}]'


def _read_message(message: Any) -> Message:
    """One message in the form of `read_messages`; what is wrong with it is told without its number and column."""
    if not isinstance(message, dict):
        raise RowProblem(None, f"is {kind_of_value(message)}, not an object", 'Write {"role": ..., "content": ...}')
    role = message.get("role")
    if len(message) == 2 and role in ROLES and isinstance(message.get("content"), str):
        return message  # nearly every message: nothing to bring into form
    found = {key: item for key, item in message.items() if item is not None}
    if "role" not in found and "from" in found:
        found = _from_sharegpt(found)
    role = found.get("role")
    if not isinstance(role, str):
        raise RowProblem(None, "has no role", f"Give it one of {', '.join(ROLES)}")
    if role not in ROLES:
        fix = f"Use one of {', '.join(ROLES)}.{did_you_mean(role[:80].lower(), ROLES)}"
        raise RowProblem(None, f"has the unknown role {role[:80]!r}", fix)
    if "tool_calls" in found:
        found["tool_calls"] = _read_tool_calls(found["tool_calls"])
        if not found["tool_calls"]:
            del found["tool_calls"]
    found["content"] = _read_content(found)
    if EITHER_WAY in found:
        cause = f"has a {EITHER_WAY!r}, which hides it in some data and has it learned in others"
        raise RowProblem(None, cause, "Name it loss_mask (1: learned) or masked (1: not learned)")
    for key in FLAGS.keys() & found.keys():
        if not isinstance(found[key], bool | int | float) or found[key] not in (0, 1):
            cause = f"has {kind_of_value(found[key])} as its {key}"
            raise RowProblem(None, cause, "Write 1 or 0 (true or false): a message is learned or not")
    return found


def _from_sharegpt(found: Message) -> Message:
    speaker = found.pop("from")
    role = SHAREGPT.get(str(speaker).lower())
    if role is None:
        fix = f"Use one of {', '.join(SHAREGPT)}.{did_you_mean(str(speaker), SHAREGPT)}"
        raise RowProblem(None, f"is from the unknown speaker {speaker!r}", fix)
    return {"role": role, "content": found.pop("value", None), **found}


def _read_content(message: Message) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    if content is None:
        if message["role"] == "assistant" and "tool_calls" in message:
            return ""
        raise RowProblem(None, "has no content", "Give it a string")
    if isinstance(content, list | tuple):
        return "".join(map(_read_part, content))
    raise RowProblem(None, f"has {kind_of_value(content)} as its content", "Give it a string or text parts")


def _read_part(part: Any) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and isinstance(part.get("text"), str) and part.get("type", "text") == "text":
        return part["text"]
    kind = part.get("type") if isinstance(part, dict) else None
    what = f"a part of type {kind!r}" if kind else kind_of_value(part)
    raise RowProblem(None, f"holds {what}", 'strop trains on text: keep parts like {"type": "text", "text": "..."}')


def _read_tool_calls(calls: Any) -> list[Message]:
    """Tool calls with arguments as objects: templates print them with `tojson`, which would quote a string twice."""
    if not isinstance(calls, list | tuple) or not all(isinstance(call, dict) for call in calls):
        raise RowProblem(None, f"has {kind_of_value(calls)} as tool_calls", "Write a list of objects")
    read = []
    for call in calls:
        inner = call.get("function")
        target = dict(inner) if isinstance(inner, dict) else dict(call)
        if isinstance(target.get("arguments"), str):
            try:
                target["arguments"] = json.loads(target["arguments"])
            except (ValueError, RecursionError):
                fix = "Write the arguments as an object"
                raise RowProblem(None, "has tool-call arguments that are not JSON", fix) from None
        read.append({**call, "function": target} if isinstance(inner, dict) else target)
    return read


def read_tools(value: Any, column: str = "tools") -> list[Any] | None:
    """Tools as a list of JSON schemas; a JSON string is parsed, an empty list is no tools. Raises `RowProblem`."""
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else None
        except (ValueError, RecursionError) as problem:
            raise RowProblem(column, f"is not valid JSON ({problem})", "Write a list of JSON schemas") from None
    if value is None or (isinstance(value, list | tuple) and not value):
        return None
    if not isinstance(value, list | tuple):
        raise RowProblem(column, f"is {kind_of_value(value)}", "Write a list of JSON schemas, or that list as JSON")
    tools = [from_json(tool) for tool in value]
    for number, tool in enumerate(tools):
        if not isinstance(tool, dict):
            raise RowProblem(column, f"tool {number} is {kind_of_value(tool)}", "Write a JSON schema (an object)")
    return tools


def is_learned(message: Message) -> bool | None:
    """What the flags of a message say: True, or False where one says that it is not learned; None without a flag."""
    said = [bool(message[key]) == bool(yes) for key, yes in FLAGS.items() if key in message]
    return all(said) if said else None


def is_hidden(message: Message) -> bool:
    """Whether a message is never scored: a tool said it, or it says so itself."""
    return message["role"] in TOOL_ROLES or is_learned(message) is False


def is_empty(message: Message) -> bool:
    """Whether a message says nothing at all: no content, no tool call, no thinking."""
    return not message["content"] and not any(
        message.get(key) for key in ("tool_calls", "thinking", "reasoning_content", "reasoning")
    )
