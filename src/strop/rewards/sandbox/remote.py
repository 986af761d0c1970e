"""Stand-ins for the program's objects in the process of the tests, and what they refuse.

A result of a plain type crosses as a copy and is compared here. Everything else is a `Remote`: methods, attributes,
items and iteration ask the program; what comes back is compared here again. What could be decided by the program is
not asked: an object never equals a plain value, and an operator between the two is refused, because the other operand
may be what the test expects (an object whose `__eq__`, or whose difference from everything, suits it would pass).
Two objects of the program are compared by the program, as its class says. Standard library only.
"""

from __future__ import annotations

import builtins
import contextlib
import copy
import operator
from typing import Any

_PLAIN: tuple[Any, ...] = (dict, list, tuple, set, frozenset, str, bytes, bytearray, bool, int, float, complex)
_PLAIN_TYPES: dict[Any, Any] = {kind.__name__: kind for kind in _PLAIN}


class Remote:
    """An object in the program's process. See the module's text for what it answers and what it refuses."""

    __slots__ = ("_client", "_detail", "_kind", "_name", "_number", "_seen")
    _client: Any
    _number: int
    _kind: str
    _name: str
    _detail: Any
    _seen: Any

    def __init__(self, client: Any, number: int, kind: str, name: str, detail: Any) -> None:
        slots = {"client": client, "number": number, "kind": kind, "name": name, "detail": detail, "seen": None}
        for slot, value in slots.items():
            object.__setattr__(self, f"_{slot}", value)

    def _ask(self, verb: str, *arguments: Any, **named: Any) -> Any:
        return self._client.ask(verb, *arguments, **named)

    def _value(self) -> Any:
        """What it holds, as a plain value. Two looks see the same, unless the program ran in between and this is
        something that it keeps (a list of the module's), or this itself was used."""
        if self._seen is None or (self._kind == "live" and self._seen[0] != self._client.asked):
            object.__setattr__(self, "_seen", (self._client.asked, self._client.ask("plain", self)))
        return self._seen[1]

    def _forget(self) -> None:
        object.__setattr__(self, "_seen", None)

    @property
    def _is_plain(self) -> bool:
        return self._kind in ("value", "live")

    @property  # type: ignore[misc]
    def __class__(self) -> Any:  # so that isinstance() sees a Counter as a dict
        return _PLAIN_TYPES.get(self._detail, Remote) if self._is_plain else Remote

    @property
    def __name__(self) -> str:
        return self._name

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        if self._kind == "async":

            async def wait() -> Any:
                return self._ask("await", self, *arguments, **named)

            return wait()
        return self._ask("call", self, *arguments, **named)

    def __getattr__(self, name: str) -> Any:
        return self._ask("getattr", self, name)

    def __getitem__(self, key: Any) -> Any:
        if self._is_plain:
            with contextlib.suppress(KeyError, TypeError):  # a defaultdict, an array: the program's own way
                return self._value()[key]
        return self._ask("getitem", self, key)

    def __contains__(self, item: Any) -> bool:
        return item in self._value() if self._is_plain else any(item == each for each in self._ask("iter", self))

    def __index__(self) -> int:
        return operator.index(self._value())

    def __round__(self, digits: int | None = None) -> Any:
        return round(self._value(), digits)

    def __deepcopy__(self, memo: Any) -> Any:
        return copy.deepcopy(self._value(), memo)

    def __exit__(self, *raised: Any) -> None:
        self._ask("exit", self)

    def __instancecheck__(self, value: Any) -> bool:
        return type(value) is Remote and _exact(bool, self._ask("instance", self, value))

    def __eq__(self, other: Any) -> Any:
        if type(other) is Remote and not self._is_plain and not other._is_plain:
            return self is other or _exact(bool, self._ask("eq", self, other))
        if self._is_plain:
            return self._value() == (other._value() if type(other) is Remote and other._is_plain else other)
        return NotImplemented

    def __ne__(self, other: Any) -> Any:
        equal = self == other if type(other) is Remote or self._is_plain else NotImplemented
        return equal if equal is NotImplemented else operator.not_(equal)


def _exact(kind: Any, value: Any) -> Any:
    if type(value) is not kind:
        raise TypeError(f"the program gave {type(value).__name__} where {kind.__name__} belongs")
    return value


def _operator(name: str, swapped: bool) -> Any:
    run = getattr(operator, name)

    def method(self: Remote, other: Any) -> Any:
        theirs = type(other) is Remote
        if self._is_plain:
            mine, other = self._value(), other._value() if theirs and other._is_plain else other
            return run(other, mine) if swapped else run(mine, other)
        if not theirs:
            raise TypeError(
                f"{name}() between the program's {self._name!r} and a plain {type(other).__name__} is not run: the "
                "program would see, and could choose, what the test expects"
            )
        return self._ask(name, *((other, self) if swapped else (self, other)))

    return method


def _question(verb: str, kind: Any = None, *, here_if_plain: bool = False) -> Any:
    """The method that asks the program, for an answer of one kind; of a plain value Python itself answers here."""

    run: Any = getattr(operator, verb, None) or getattr(builtins, verb, None)

    def method(self: Remote, *arguments: Any) -> Any:
        if here_if_plain and self._is_plain:
            return run(self._value())
        answer = self._ask(verb, self, *arguments)
        return answer if kind is None else _exact(kind, answer)

    return method


for _name in ("setattr", "delattr", "setitem", "delitem", "next", "enter"):
    setattr(Remote, f"__{_name}__", _question(_name))
for _name in ("str", "repr", "format"):
    setattr(Remote, f"__{_name}__", _question(_name, str))
for _name in ("iter", "reversed", "neg", "pos", "abs", "invert"):
    setattr(Remote, f"__{_name}__", _question(_name, here_if_plain=True))
for _name, _kind in {"len": int, "bool": bool, "hash": int, "int": int, "float": float}.items():
    setattr(Remote, f"__{_name}__", _question(_name, _kind, here_if_plain=True))
for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and_", "or_", "xor"):
    setattr(Remote, f"__{_name.rstrip('_')}__", _operator(_name, False))
    setattr(Remote, f"__r{_name.rstrip('_')}__", _operator(_name, True))
for _name in ("lt", "le", "gt", "ge"):
    setattr(Remote, f"__{_name}__", _operator(_name, False))


def exception_class(classes: list[Any], known: dict[int, type[BaseException]]) -> type[BaseException]:
    """The class to raise here for an exception of the program: a built-in one, or one made after its own.

    `classes` is its line of classes: names of built-in exceptions, and [number, name] for the program's own.
    """
    for at, told in enumerate(classes):
        if isinstance(told, str):
            kind = getattr(builtins, told, None)
            if isinstance(kind, type) and issubclass(kind, BaseException):
                return kind
        elif isinstance(told, list) and len(told) == 2 and type(told[0]) is int and type(told[1]) is str:
            if told[0] not in known:
                known[told[0]] = type(told[1], (exception_class(classes[at + 1 :], known),), {})
            return known[told[0]]
    return Exception
