"""How models write a call of a tool: one reader per format, and the one that a chat template itself writes.

A reader takes a turn as it was sampled, special tokens included, and gives the spans of text that are calls.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MOST_CHARACTERS = 100_000
"""Longer calls are not read: a parser of nested brackets may need more stack than there is."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call that a model wrote; `problem` says what is wrong with one that cannot be made."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None
    id: str = field(default="", compare=False)  # within its conversation


Found = tuple[int, int, list[ToolCall]]
"""Start and end of a span of characters, and the calls that stand in it."""
Reader = Callable[[str, Mapping[str, Any]], Iterator[Found]]
"""(turn, tool schemas by name) -> calls; the schemas type arguments that are written without quotes."""
Read = Callable[[re.Match[str], Mapping[str, Any]], list[ToolCall]]
"""(span, tool schemas by name) -> its calls."""


def spans(pattern: str, read: Read) -> Reader:
    """A reader of calls that begin and end in fixed words; a call that the turn breaks off ends with the turn."""
    compiled = re.compile(pattern, re.DOTALL)

    def reader(text: str, schemas: Mapping[str, Any]) -> Iterator[Found]:
        for match in compiled.finditer(text):
            yield match.start(), match.end(), read(match, schemas)

    return reader


def json_calls(match: re.Match[str], schemas: Mapping[str, Any]) -> list[ToolCall]:
    """Calls in JSON: an object with a name and arguments, or a list of them."""
    try:
        value = load_json(match["body"])
    except ValueError as error:
        return [ToolCall("", {}, f"the call is not valid JSON ({error}).")]
    return [call_of_object(item) for item in (value if isinstance(value, list) else [value])]


def load_json(text: str) -> Any:
    """The value of a JSON text. Raises `ValueError`, also where brackets are nested too deeply."""
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"it is longer than {MOST_CHARACTERS} characters")
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("its brackets are nested too deeply") from None


def call_of_object(value: Any) -> ToolCall:
    """A call from an object of any family's keys."""
    inner = value.get("function", value) if isinstance(value, dict) else None
    inner = value if isinstance(inner, str) else inner  # {"type": "function", "function": "name", ...}
    if not isinstance(inner, dict):
        return ToolCall("", {}, "a call must be a JSON object.")
    name = next((inner[key] for key in ("name", "tool_name", "function") if key in inner), None)
    arguments: Any = next((inner[key] for key in ("arguments", "parameters", "args") if key in inner), {})
    if isinstance(name, str) and isinstance(arguments, str):
        return call_of_text(name, arguments)
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return ToolCall(str(name), {}, "a call needs a name and an object of arguments.")
    return ToolCall(name, arguments)


def named_json(match: re.Match[str], schemas: Mapping[str, Any]) -> list[ToolCall]:
    """A name outside of the JSON object of its arguments."""
    return [call_of_text(match["name"], match["body"].strip() or "{}")]


def call_of_text(name: str, arguments: str) -> ToolCall:
    """A call whose arguments are a JSON text."""
    try:
        value = load_json(arguments)
    except ValueError as error:
        return ToolCall(name, {}, f"the arguments are not valid JSON ({error}).")
    if not isinstance(value, dict):
        return ToolCall(name, {}, "the arguments must be a JSON object.")
    return ToolCall(name, value)


def tagged_arguments(pattern: str) -> Read:
    """Calls whose arguments stand in tags of their own."""
    compiled = re.compile(pattern, re.DOTALL)

    def read(match: re.Match[str], schemas: Mapping[str, Any]) -> list[ToolCall]:
        name = match["name"].strip()
        return [
            ToolCall(
                name, {m["key"]: typed(name, m["key"], m["value"], schemas) for m in compiled.finditer(match["body"])}
            )
        ]

    return read


def typed(name: str, key: str, text: str, schemas: Mapping[str, Any]) -> Any:
    """An argument that was written bare: text where the tool's schema says so, else what JSON or Python reads."""
    schema: Any = schemas
    for part in (name, "parameters", "properties", key, "type"):  # whoever wrote it may have written anything
        schema = schema.get(part) if isinstance(schema, Mapping) else None
    text = text.strip("\n")
    if schema == "string":
        return text
    for parse in (load_json, ast.literal_eval):
        try:
            return as_json(parse(text.strip()))
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            continue
    return text


def python_calls(match: re.Match[str], schemas: Mapping[str, Any]) -> list[ToolCall]:
    """Calls written as a Python list: [f(x=1), g(y='a')]."""
    body = match["body"].strip()
    body = body if body.startswith("[") else f"[{body}]"
    try:
        if len(body) > MOST_CHARACTERS:
            raise ValueError
        items = ast.parse(body, mode="eval").body
        if not isinstance(items, ast.List):
            raise ValueError
        return [_python_call(item) for item in items.elts]
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return [ToolCall("", {}, "the calls are not a list such as [name(key=value)].")]


def _python_call(node: ast.expr) -> ToolCall:
    if not isinstance(node, ast.Call) or node.args:
        raise ValueError
    return ToolCall(ast.unparse(node.func), {word.arg or "": _python_value(word.value) for word in node.keywords})


def _python_value(node: ast.expr) -> Any:
    words = {"true": True, "false": False, "null": None}
    if isinstance(node, ast.Name) and node.id in words:
        return words[node.id]
    return as_json(ast.literal_eval(node))


def as_json(value: Any) -> Any:
    """A Python literal as JSON has it. Raises `ValueError` or `TypeError` where it does not: a set, bytes, `...`."""
    return json.loads(json.dumps(value))


def gemma_calls(match: re.Match[str], schemas: Mapping[str, Any]) -> list[ToolCall]:
    """Arguments as JSON whose keys have no quotes and whose strings stand between <|"|> marks."""
    parts = match["body"].split('<|"|>')
    pieces = [
        json.dumps(p) if i % 2 else re.sub(r"([{,]\s*)([A-Za-z_]\w*)\s*:", r'\1"\2":', p) for i, p in enumerate(parts)
    ]
    return [call_of_text(match["name"], "".join(pieces))]


def bare_json(text: str, schemas: Mapping[str, Any]) -> Iterator[Found]:
    """A turn that is JSON with a tool's name in it and nothing else, several divided by ';'; fences may stand around.

    JSON that names no tool is an answer like any other.
    """
    match = re.fullmatch(
        r"\s*(?:<\|python_tag\|>)?\s*(?:```(?:json)?\s*)?(?P<body>[\[{].*[\]}])\s*(?:```)?\s*", text, re.DOTALL
    )
    if match is None:
        return
    calls = []
    decoder = json.JSONDecoder()
    rest = match["body"] if len(match["body"]) <= MOST_CHARACTERS else ""
    while rest:
        try:
            value, end = decoder.raw_decode(rest)
        except (ValueError, RecursionError):
            return
        calls += [call_of_object(item) for item in (value if isinstance(value, list) else [value])]
        rest = rest[end:].lstrip(" ;\n")
    if calls and all(call.problem is None and (not schemas or call.name in schemas) for call in calls):
        yield match.start(), match.end(), calls


def embedded_json(text: str, schemas: Mapping[str, Any]) -> Iterator[Found]:
    """`bare_json`, and such an object at the end of other words."""
    if found := list(bare_json(text, schemas)):
        yield from found
        return
    for match in re.finditer(r'(?:```(?:json)?\s*)?(?=[\[{]\s*[\[{]?\s*")', text):
        for start, end, calls in bare_json(text[match.start() :], schemas):
            yield match.start() + start, match.start() + end, calls
            return


@dataclass(frozen=True, slots=True)
class CallFormat:
    """One way to write calls.

    `closing` is what the last call of a turn ends in: words of the format, which end no turn. `needs_end`: the token
    that ends the turn is part of the call.
    """

    name: str
    read: Reader
    closing: tuple[str, ...] = ()
    needs_end: bool = False

    def take(self, turn: str, end: str, schemas: Mapping[str, Any]) -> tuple[list[ToolCall], str]:
        """The calls of a turn that ended in `end`, and the turn without them."""
        calls: list[ToolCall] = []
        words = turn
        for start, stop, found in reversed(list(self.read(turn + end if self.needs_end else turn, schemas))):
            calls[:0] = found
            words = words[:start] + words[stop:]
        return calls, words


def between(name: str, begin: str, end: str, read: Read = json_calls) -> CallFormat:
    """Calls that stand between two words and are all that stands there."""
    pattern = rf"{re.escape(begin)}\s*(?P<body>.*?)\s*(?:{re.escape(end)}|\Z)"
    return CallFormat(name, spans(pattern, read), (end,))


TOOL_CALL = r"<tool_call>\s*"
END_CALL = r"\s*(?:</tool_call>|\Z)"
FORMATS: tuple[CallFormat, ...] = (
    CallFormat(
        "tagged parameters",
        spans(
            TOOL_CALL + r"<function=(?P<name>[^>\n]+)>(?P<body>.*?)(?:</function>)?" + END_CALL,
            tagged_arguments(r"<parameter=(?P<key>[^>\n]+)>(?P<value>.*?)</parameter>"),
        ),
        ("</tool_call>",),
    ),
    CallFormat(
        "argument keys and values",
        spans(
            TOOL_CALL + r"(?P<name>[\w.-]+)\s*(?P<body>(?:<arg_key>.*?)?)" + END_CALL,
            tagged_arguments(r"<arg_key>(?P<key>.*?)</arg_key>\s*<arg_value>(?P<value>.*?)</arg_value>"),
        ),
        ("</tool_call>",),
    ),
    CallFormat("tagged JSON", spans(TOOL_CALL + r"(?P<body>[\[{].*?)" + END_CALL, json_calls), ("</tool_call>",)),
    between("TOOLCALL list", "<TOOLCALL>", "</TOOLCALL>"),
    CallFormat(
        "Mistral names", spans(
            r"\[TOOL_CALLS\](?P<name>[\w.-]+)(?:\[CALL_ID\]\w+)?(?:\[ARGS\])?(?P<body>\{.*?)(?=\[TOOL_CALLS\]|\Z)",
            named_json,
        ),
    ),
    CallFormat("Mistral list", spans(r"\[TOOL_CALLS\]\s*(?P<body>[\[{].*)\Z", json_calls)),
    CallFormat(
        "DeepSeek", spans(
            r"(?:<｜tool▁calls▁begin｜>)?\s*<｜tool▁call▁begin｜>(?:function<｜tool▁sep｜>)?(?P<name>[^<\n]+?)(?:<｜tool▁sep｜>|\n)"
            r"\s*(?:```json\n)?(?P<body>.*?)(?:\n```)?\s*(?:<｜tool▁call▁end｜>|\Z)\s*(?:<｜tool▁calls▁end｜>)?",
            named_json,
        ),
        ("<｜tool▁calls▁end｜>", "<｜tool▁call▁end｜>"),
    ),
    CallFormat(
        "harmony", spans(
            r"(?:<\|start\|>assistant)?(?:<\|channel\|>commentary)?\s*to=(?:functions\.)?(?P<name>[\w.-]+?)"
            r"(?:\s*<\|channel\|>commentary)?\s*(?:<\|constrain\|>)?(?:json)?\s*<\|message\|>(?P<body>.*?)(?:<\|call\|>|\Z)",
            named_json,
        ),
        needs_end=True,
    ),
    between("Python list", "<|tool_call_start|>", "<|tool_call_end|>", python_calls),
    CallFormat(
        "call and braces",
        spans(r"<\|tool_call>call:(?P<name>[\w.-]+)(?P<body>\{.*?)(?:<tool_call\|>|\Z)", gemma_calls),
        ("<tool_call|>",),
    ),
    between("tool_call list", "<|tool_call|>", "<|/tool_call|>"),
    between("actions", "<|START_ACTION|>", "<|END_ACTION|>"),
    CallFormat(
        "action list", spans(r"Action:\s*```json\n(?P<body>.*?)\n?```", json_calls), ("```",)
    ),
    CallFormat("bare JSON", bare_json),
    CallFormat("JSON among words", embedded_json, ("```",)),
)  # fmt: skip
"""Tried in this order on what a template prints of a call; each is strict enough to read no other's."""

ANY = CallFormat("any", lambda text, schemas: any_format(text, schemas))
"""For templates that print no calls: the first format that finds one."""


def any_format(text: str, schemas: Mapping[str, Any]) -> Iterator[Found]:
    for form in FORMATS:
        if found := list(form.read(text, schemas)):
            yield from found
            return


def format_of(printed: str, wanted: Sequence[ToolCall]) -> CallFormat | None:
    """The format that reads the calls `wanted`, and nothing else, out of what a template printed for them."""
    return next((form for form in FORMATS if form.take(printed, "", {})[0] == list(wanted)), None)


def response_format(tokenizer: Any) -> CallFormat | None:
    """Calls as a tokenizer says that they are written; None for one without a `response_template` (transformers).

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
