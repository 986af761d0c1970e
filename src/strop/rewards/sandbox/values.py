"""Plain values over a pipe: exact built-in types only, bounded in size and depth, both ways.

A value travels as JSON. None, bool, str, float and small int are themselves, a list is a list, and everything else is
an object with one key, its tag: {"t": [1, 2]} is the tuple (1, 2). What is not plain is given to a hook, which returns
a tagged reference or raises `Unsendable`. A frame is a length of four bytes and JSON.

Runs inside of the sandbox too, so it imports the standard library only.
"""

from __future__ import annotations

import json
import os
import struct
import sys
from collections.abc import Callable
from typing import Any

MAX_FRAME_BYTES = 8 << 20
MAX_DEPTH = 100
_SMALL = 1 << 63

Hook = Callable[[Any], Any]


class Unsendable(TypeError):
    """A value cannot cross: its type is not plain, or it is too large or too deep."""


class ChannelBroken(BaseException):
    """The other side is gone, or sent what is no message. No `except Exception` of a test may swallow it."""


def encode(value: Any, hook: Hook, depth: int = 0) -> Any:
    """The JSON form of a value; `hook(value)` gives the form of what is not plain."""
    kind = type(value)
    if value is None or kind in (bool, str, float):
        return value
    if kind is int:
        return value if -_SMALL < value < _SMALL else {"i": hex(value)}
    if depth >= MAX_DEPTH:
        raise Unsendable(f"a value is nested deeper than {MAX_DEPTH}")
    if kind is list:
        return [encode(item, hook, depth + 1) for item in value]
    if kind is dict:
        return {"d": [[encode(key, hook, depth + 1), encode(item, hook, depth + 1)] for key, item in value.items()]}
    tag = _SEQUENCE_TAGS.get(kind)
    if tag is not None:
        return {tag: [encode(item, hook, depth + 1) for item in value]}
    if kind in (bytes, bytearray):
        return {"b" if kind is bytes else "B": value.hex()}
    if kind is complex:
        return {"c": [value.real, value.imag]}
    if kind is range:
        return {"r": [encode(end, hook) for end in (value.start, value.stop, value.step)]}
    if value is Ellipsis:
        return {"e": 0}
    if kind is getattr(sys.modules.get("decimal"), "Decimal", None):
        return {"m": str(value)}
    if kind is getattr(sys.modules.get("fractions"), "Fraction", None):
        return {"q": [encode(value.numerator, hook), encode(value.denominator, hook)]}
    return hook(value)


_SEQUENCE_TAGS: dict[Any, str] = {tuple: "t", set: "s", frozenset: "z"}
_SEQUENCES: dict[str, Any] = {"t": tuple, "s": set, "z": frozenset}


def decode(form: Any, hook: Callable[[str, Any], Any], depth: int = 0) -> Any:
    """The value of a JSON form; `hook(tag, content)` reads the tags that are not plain.

    Raises:
        ValueError, TypeError, KeyError, OverflowError: it is no form of a value.
    """
    if depth > MAX_DEPTH:
        raise ValueError("nested too deep")
    if type(form) is list:
        return [decode(item, hook, depth + 1) for item in form]
    if type(form) is not dict:
        return form
    ((tag, content),) = form.items()
    if tag == "d":
        return {decode(key, hook, depth + 1): decode(item, hook, depth + 1) for key, item in content}
    if tag in _SEQUENCES:
        return _SEQUENCES[tag]([decode(item, hook, depth + 1) for item in content])
    if tag == "i":
        return int(content, 16)
    if tag in ("b", "B"):
        return bytes.fromhex(content) if tag == "b" else bytearray.fromhex(content)
    if tag == "c":
        return complex(float(content[0]), float(content[1]))
    if tag == "r":
        return range(*(decode(end, hook) for end in content))
    if tag == "e":
        return ...
    if tag == "m":
        from decimal import Decimal

        return Decimal(content)
    if tag == "q":
        from fractions import Fraction

        return Fraction(decode(content[0], hook), decode(content[1], hook))
    return hook(tag, content)


def framed(message: Any) -> bytes:
    """A message as it travels: its length and its JSON."""
    data = json.dumps(message).encode("ascii")
    return struct.pack(">I", len(data)) + data


class Channel:
    """Frames over two descriptors. Once broken it stays broken."""

    def __init__(self, incoming: int, outgoing: int, mark: bytes = b"") -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self._mark = mark  # written before each frame
        self.broken = ""

    def send(self, message: Any) -> None:
        try:
            data = framed(message)
        except (RecursionError, MemoryError) as error:
            raise Unsendable(f"a value is too large or too deep: {type(error).__name__}") from None
        if len(data) > MAX_FRAME_BYTES:
            raise Unsendable(f"a value takes {len(data)} bytes, more than {MAX_FRAME_BYTES}")
        view = memoryview(self._mark + data)
        try:
            while view:
                view = view[os.write(self._outgoing, view) :]
        except OSError as error:
            raise self.fail(f"the other side is gone ({error})") from None

    def receive(self, most_bytes: int = MAX_FRAME_BYTES) -> Any:
        (length,) = struct.unpack(">I", self._read(4))
        if length > most_bytes:
            raise self.fail(f"a message of {length} bytes was announced")
        data = self._read(length)
        try:
            return json.loads(data)
        except (ValueError, RecursionError, MemoryError):
            raise self.fail("what was sent is no message") from None

    def fail(self, why: str) -> ChannelBroken:
        self.broken = self.broken or why
        return ChannelBroken(self.broken)

    def _read(self, size: int) -> bytes:
        if self.broken:
            raise ChannelBroken(self.broken)
        data = b""
        while len(data) < size:
            try:
                more = os.read(self._incoming, min(size - len(data), 1 << 20))
            except OSError as error:
                raise self.fail(f"the other side is gone ({error})") from None
            if not more:
                raise self.fail("the program ended before it answered")
            data += more
        return data


def line_of(error: BaseException) -> str:
    """One line that names an exception, at most 300 characters."""
    try:
        return f"{type(error).__name__}: {error}"[:300]
    except BaseException:
        return type(error).__name__
