"""The program's side of the pipe: load the module, then answer calls to what it defined.

All that is sent from here is written by the interpreter of a hostile program, and worth what its answers are worth:
the tests, and what they expect, are in another process (`judging`). Standard library only.
"""

from __future__ import annotations

import builtins
import operator
import sys
import types
from typing import Any

from strop.rewards.sandbox.values import Channel, Unsendable, decode, encode, line_of

_MAX_OBJECTS = 100_000
_PLAIN_BASES: tuple[Any, ...] = (dict, list, tuple, set, frozenset, str, bytes, bool, int, float, complex)
_MUTABLE = (list, dict, set, bytearray)


class Server:
    """Keeps the objects that were named to the other side, and answers its requests until it hangs up."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._objects: list[Any] = []
        self._numbers: dict[int, int] = {}  # id -> number; the list keeps the objects alive, so ids stay theirs

    def serve(self, code: str) -> None:
        """Run the module, tell its names, answer."""
        module = types.ModuleType("solution")
        sys.modules["solution"] = module  # dataclasses, pickle and typing look their module up
        try:
            exec(compile(code, "solution.py", "exec", dont_inherit=True), vars(module))
        except BaseException as error:
            self._channel.send(["failed", line_of(error)])
            return
        self._channel.send(["loaded", self._names(vars(module))])
        while True:
            self._answer(self._channel.receive())

    def _names(self, space: dict[str, Any]) -> list[Any]:
        told = []
        for name, value in list(space.items())[:10_000]:
            if isinstance(name, str) and not (name.startswith("__") and name.endswith("__")):
                try:
                    told.append([name, self._live(value)])
                except Unsendable:
                    continue
        return told

    def _answer(self, request: Any) -> None:
        verb, forms, keywords = request
        try:
            arguments = [decode(form, self._read) for form in forms]
            named = {name: decode(form, self._read) for name, form in keywords.items()}
            result = self._do(verb, arguments, named)
            form = self._live(result) if verb == "getattr" else encode(result, self._refer)
            after = [encode(value, self._refer) for value in arguments] if verb == "call" else forms
            reply = ["value", form, after if after != forms else None]
            self._channel.send(reply)
        except BaseException as error:
            self._channel.send(["raise", self._classes(type(error)), line_of(error), self._arguments_of(error)])

    def _do(self, verb: str, arguments: list[Any], named: dict[str, Any]) -> Any:
        if verb == "call":
            return arguments[0](*arguments[1:], **named)
        if verb == "plain":
            return _plain(arguments[0])
        if verb == "await":
            import asyncio

            async def wait() -> Any:
                return await arguments[0](*arguments[1:], **named)

            return asyncio.run(wait())
        if verb == "instance":
            return isinstance(arguments[1], arguments[0])
        if verb == "enter":
            return type(arguments[0]).__enter__(arguments[0])
        if verb == "exit":
            return bool(type(arguments[0]).__exit__(arguments[0], None, None, None))
        return (getattr(operator, verb, None) or getattr(builtins, verb))(*arguments)

    def _live(self, value: Any) -> Any:
        """A list that the program keeps is told by reference, so that the tests see what becomes of it."""
        form = self._refer(value) if type(value) in _MUTABLE else encode(value, self._refer)
        if type(form) is dict and form.get("o", ("", ""))[1] == "value":
            form["o"][1] = "live"
        return form

    def _refer(self, value: Any) -> Any:
        if isinstance(value, Callback):
            return {"f": value.number}
        number = self._numbers.get(id(value))
        if number is None:
            if len(self._objects) >= _MAX_OBJECTS:
                raise Unsendable(f"more than {_MAX_OBJECTS} objects")
            number = self._numbers[id(value)] = len(self._objects)
            self._objects.append(value)
        return {"o": [number, *_kind(value)]}

    def _read(self, tag: str, content: Any) -> Any:
        if tag == "o":
            return self._objects[content]
        if tag == "n":
            return getattr(builtins, content)
        if tag == "f":
            return Callback(self, content)
        raise ValueError(f"unknown tag {tag!r}")

    def call_back(self, number: int, arguments: Any, named: dict[str, Any]) -> Any:
        """Call a function of the tests that was given to the program."""
        forms = [encode(value, self._refer) for value in arguments]
        self._channel.send(["callback", number, forms, {k: encode(v, self._refer) for k, v in named.items()}])
        while True:
            reply = self._channel.receive()
            if reply[0] == "returned":
                return decode(reply[1], self._read)
            if reply[0] == "raised":
                raise getattr(builtins, reply[1], RuntimeError)(reply[2])
            self._answer(reply)

    def _classes(self, kind: type) -> list[Any]:
        """The classes of an exception: names of built-in ones, [number, name] of the program's own."""
        told: list[Any] = []
        for each in kind.__mro__[:50]:
            builtin = getattr(builtins, each.__name__, None) is each
            told.append(each.__name__ if builtin else [self._refer(each)["o"][0], str(each.__name__)[:100]])
        return told

    def _arguments_of(self, error: BaseException) -> Any:
        try:
            return encode(list(error.args), self._refer)
        except BaseException:
            return []


class Callback:
    """A function of the tests, as the program sees it."""

    def __init__(self, server: Server, number: int) -> None:
        self._server = server
        self.number = number

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._server.call_back(self.number, arguments, named)


def _kind(value: Any) -> list[Any]:
    """[kind, name, detail] of an object that is told by reference."""
    if isinstance(value, type):
        detail = _exception_names(value) if issubclass(value, BaseException) else None
        return ["class", str(value.__name__)[:100], detail]
    name = str(getattr(value, "__name__", type(value).__name__))[:100]
    if isinstance(value, types.ModuleType):
        return ["module", name, None]
    for base in _PLAIN_BASES:
        if isinstance(value, base):
            return ["value", type(value).__name__, base.__name__]
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return ["value", type(value).__name__, type(value.tolist()).__name__]
    if isinstance(value, types.FunctionType) and value.__code__.co_flags & 0x80:  # CO_COROUTINE
        return ["async", name, None]
    return ["object", type(value).__name__[:100], None]


def _exception_names(kind: type) -> list[str]:
    return [each.__name__ for each in kind.__mro__ if getattr(builtins, each.__name__, None) is each]


def _plain(value: Any) -> Any:
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return value.tolist()
    for base in _PLAIN_BASES:
        if isinstance(value, base):
            items = dict.items(value) if base is dict else value
            return bool(value) if base is bool else base(items)
    raise Unsendable(f"an object of type {type(value).__name__} has no plain value")
