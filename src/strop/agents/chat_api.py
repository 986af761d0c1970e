"""OpenAI's chat-completions dialect: what a request asks for, in the words of chat templates, and what is answered.

Nothing that is asked for is dropped: a setting is honoured, is overruled by the run's (and named to the user), or is
refused with a sentence.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from strop.agents.spoken import Spoken
from strop.agents.template import Message

OVERRULED = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")
"""Settings of the distribution that is sampled from: the run's hold, since its log-probs are those of the ratio."""
ONLY: dict[str, tuple[Any, ...]] = {
    "n": (1,), "frequency_penalty": (0,), "presence_penalty": (0,), "logit_bias": ({},), "top_logprobs": (0,),
    "parallel_tool_calls": (True,), "response_format": ({"type": "text"},), "tool_choice": ("auto", "none"),
}  # fmt: skip
"""Settings of which one value is served."""
HARMLESS = ("model", "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")
READ = (
    "messages", "tools", "stop", "max_tokens", "max_completion_tokens", "stream", "stream_options", "logprobs",
    "chat_template_kwargs",
)  # fmt: skip
ROLES = ("system", "developer", "user", "assistant", "tool")


class Refused(Exception):
    """A request that is answered by an error: its HTTP status, and the code of OpenAI's error object."""

    def __init__(self, message: str, status: int = 400, code: str | None = None) -> None:
        super().__init__(message)
        self.message, self.status, self.code = message, status, code

    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": "invalid_request_error", "param": None, "code": self.code}}


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One request, checked."""

    messages: list[Message]  # as templates have them: texts, and arguments of calls as objects
    tools: list[Any] = field(default_factory=list)
    calling: bool = False  # whether calls of tools are read in the answer
    stop: tuple[str, ...] = ()
    max_tokens: int | None = None
    kwargs: Mapping[str, Any] = field(default_factory=dict)  # variables of the chat template
    model: str = "policy"  # the name that the agent calls it by
    stream: bool = False
    stream_usage: bool = False
    logprobs: bool = False
    sampling: Mapping[str, Any] = field(default_factory=dict)  # what the agent would have sampled with


@dataclass(frozen=True, slots=True)
class ChatReply:
    """What the model said, for the agent."""

    message: Message
    finish: str  # "stop", "length" or "tool_calls"
    prompt_tokens: int
    tokens: Sequence[tuple[str, float]]  # text and log-prob, nats, of each sampled token


def read_request(given: Any) -> ChatRequest:
    """Check a request's JSON. Raises `Refused`."""
    if not isinstance(given, Mapping):
        raise Refused("The body must be a JSON object.")
    asked = {name: value for name, value in given.items() if value is not None}
    known = {*OVERRULED, *ONLY, *HARMLESS, *READ}
    if unknown := sorted(asked.keys() - known):
        raise Refused(f"The training server does not know {unknown}; leave it out.", code="unknown_parameter")
    for name, values in ONLY.items():
        if name in asked and asked[name] not in values:
            served = " or ".join(json.dumps(value) for value in values)
            raise Refused(f"{name} is served as {served} only; got {json.dumps(asked[name])[:100]}.")
    limit = asked.get("max_completion_tokens", asked.get("max_tokens"))
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        raise Refused(f"max_tokens must be an integer >= 1; got {limit!r}.")
    stop = asked.get("stop", [])
    stop = [stop] if isinstance(stop, str) else stop
    if not isinstance(stop, list) or not all(isinstance(text, str) and text for text in stop):
        raise Refused("stop must be a text, or a list of texts.")
    tools, options = asked.get("tools", []), asked.get("stream_options", {})
    variables = asked.get("chat_template_kwargs", {})
    if not isinstance(options, Mapping) or not isinstance(variables, Mapping):
        raise Refused("stream_options and chat_template_kwargs must be JSON objects.")
    if not isinstance(tools, list) or not all(map(_is_function, tools)):
        raise Refused('tools must be a list of {"type": "function", "function": {"name": ..., "parameters": ...}}.')
    return ChatRequest(
        read_messages(asked.get("messages")), tools, bool(tools) and asked.get("tool_choice") != "none", tuple(stop),
        limit, variables, str(asked.get("model", "policy")), asked.get("stream") is True,
        options.get("include_usage") is True, asked.get("logprobs") is True,
        {name: asked[name] for name in OVERRULED if name in asked},
    )  # fmt: skip


def _is_function(tool: Any) -> bool:
    function = tool.get("function") if isinstance(tool, Mapping) and tool.get("type") == "function" else None
    return isinstance(function, Mapping) and isinstance(function.get("name"), str)


def read_messages(given: Any) -> list[Message]:
    """Messages as chat templates have them. Raises `Refused`."""
    if not isinstance(given, list) or not given:
        raise Refused("messages must be a list of at least one message.")
    messages = [_message(message, f"messages[{place}]") for place, message in enumerate(given)]
    if messages[-1]["role"] == "assistant":
        raise Refused("The last message is the assistant's own; a turn of the user or of a tool must follow it.")
    names: dict[str, str] = {}
    for message in messages:
        names |= {call["id"]: call["function"]["name"] for call in message.get("tool_calls", ())}
        if message["role"] == "tool" and message.get("tool_call_id") in names:  # which templates print, unlike the id
            message.setdefault("name", names[message["tool_call_id"]])
    return messages


def _message(given: Any, where: str) -> Message:
    role = given.get("role") if isinstance(given, Mapping) else None
    if role not in ROLES:
        raise Refused(f"{where} must be an object whose role is one of {list(ROLES)}; got {role!r}.")
    message: Message = {
        "role": "system" if role == "developer" else role,
        "content": _text(given.get("content"), where),
    }
    for name in ("name", "tool_call_id", "reasoning_content"):
        if isinstance(given.get(name), str):
            message[name] = given[name]
    if calls := given.get("tool_calls"):
        if not isinstance(calls, list) or not all(map(_is_function, calls)):
            raise Refused(f'{where}: tool_calls must be a list of {{"type": "function", "function": ...}}.')
        message["tool_calls"] = [_call(call) for call in calls]
    return message


def _text(content: Any, where: str) -> str:
    parts = content if isinstance(content, list) else [{"type": "text", "text": "" if content is None else content}]
    texts = [part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise Refused(f"{where}: content must be text, or a list of parts of type text.")
    return "".join(texts)  # type: ignore[arg-type]


def _call(call: Mapping[str, Any]) -> Message:
    """A call whose arguments are an object, as templates print them, where their text is one."""
    given = call["function"].get("arguments", {})
    read = read_text(given)
    function = {"name": call["function"]["name"], "arguments": read if isinstance(read, Mapping) else given}
    return {"type": "function", "id": str(call.get("id", "")), "function": function}


def read_text(value: Any) -> Any:
    """The value of a JSON text; all else as it is."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return value


def reply_message(said: Spoken, request: ChatRequest) -> Message:
    """The model's turn as the dialect has it; a call that cannot be read is words."""
    words = said.bare if any(call.problem is not None for call in said.calls) else said.words
    cut = min((at for stop in request.stop if (at := words.find(stop)) >= 0), default=len(words))
    message: Message = {"role": "assistant", "content": words[:cut]}
    if said.thought:
        message["reasoning_content"] = said.thought
    made = [
        {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": json.dumps(dict(c.arguments))}}
        for c in ([] if words is said.bare else said.calls)
    ]
    return {**message, "content": words[:cut] or None, "tool_calls": made} if made else message


def completion(request: ChatRequest, reply: ChatReply) -> dict[str, Any]:
    """The answer to a request without `stream`."""
    choice = {
        "index": 0, "message": {**reply.message, "refusal": None}, "finish_reason": reply.finish,
        "logprobs": _logprobs(request, reply),
    }  # fmt: skip
    return {**_head(request, "chat.completion"), "choices": [choice], "usage": _usage(reply)}


def events(request: ChatRequest, reply: ChatReply) -> str:
    """The answer to a request with `stream`: server-sent events, of which the first has all that was said."""
    message = reply.message
    if "tool_calls" in message:
        message = {**message, "tool_calls": [{"index": i, **call} for i, call in enumerate(message["tool_calls"])]}
    chunk = _head(request, "chat.completion.chunk")
    said = {"index": 0, "delta": message, "finish_reason": None, "logprobs": _logprobs(request, reply)}
    ended = {"index": 0, "delta": {}, "finish_reason": reply.finish}
    chunks = [{**chunk, "choices": [said]}, {**chunk, "choices": [ended]}]
    if request.stream_usage:
        chunks.append({**chunk, "choices": [], "usage": _usage(reply)})
    return "".join(f"data: {json.dumps(part)}\n\n" for part in chunks) + "data: [DONE]\n\n"


def _head(request: ChatRequest, kind: str) -> dict[str, Any]:
    now = time.time()
    return {"id": f"chatcmpl-{int(now * 1e6)}", "object": kind, "created": int(now), "model": request.model}


def _usage(reply: ChatReply) -> dict[str, int]:
    asked, said = reply.prompt_tokens, len(reply.tokens)
    return {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said}


def _logprobs(request: ChatRequest, reply: ChatReply) -> dict[str, Any] | None:
    if not request.logprobs:
        return None
    content = [
        {"token": text, "logprob": logp, "bytes": list(text.encode()), "top_logprobs": []}
        for text, logp in reply.tokens
    ]
    return {"content": content, "refusal": None}
