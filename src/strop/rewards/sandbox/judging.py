"""The tests, in a process of their own: they call the program through a pipe, and the verdict is made here.

What a test expects never leaves this process. Which of the program's names a test sees is decided here too: a program
that defines `abs` or `isclose` must not be asked whether a difference is small. So where a test uses a function that
only the program can have, its built-in and library names are the real ones; where it uses nothing else of the program
(`assert sum(10, 15) == 6`), the program's is the one under test. Standard library only.
"""

from __future__ import annotations

import builtins
import dis
import importlib
import sys
import types
from typing import Any

from strop.rewards.sandbox.remote import Remote, exception_class
from strop.rewards.sandbox.values import Channel, ChannelBroken, Unsendable, decode, encode, line_of

_MAX_OBJECTS = 100_000
_MALFORMED = (ValueError, TypeError, KeyError, IndexError, OverflowError, RecursionError, ArithmeticError)
_LIBRARY = (
    *("math", "collections", "itertools", "functools", "operator", "copy", "typing", "string", "re", "datetime"),
    *("decimal", "fractions", "heapq", "bisect", "statistics", "random", "json"),
)
_NAME_LOADS = frozenset(("LOAD_NAME", "LOAD_GLOBAL", "LOAD_FROM_DICT_OR_GLOBALS"))
_CHANGING = frozenset(("call", "getattr", "setattr", "delattr", "setitem", "delitem"))
"""After these an object may hold something else; a method is an attribute first."""
_ALIASES = {"np": "numpy", "pd": "pandas", "dt": "datetime", "nx": "networkx", "sp": "scipy"}


class Client:
    """Asks the program; keeps the stand-ins for its objects."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self._remotes: dict[int, Any] = {}
        self._exceptions: dict[int, type[BaseException]] = {}
        self._callbacks: list[Any] = []
        self.asked = 0  # how often the program ran, and with that what it keeps may have changed

    def names(self) -> dict[str, Any]:
        """What the program defined.

        Raises:
            ChannelBroken: it did not come to its end; the text says why.
        """
        message = self.channel.receive()
        try:
            kind, content = message
            if kind == "loaded":
                told = {_text(name): form for name, form in content}
                return {name: decode(form, self._read) for name, form in told.items() if _may_be_given(name)}
            why = _text(content)[:300]
        except _MALFORMED:
            why = "what was sent is no message"
        raise self.channel.fail(why)

    def ask(self, verb: str, *arguments: Any, **named: Any) -> Any:
        """Have the program do something; returns its result or raises its exception."""
        if verb != "plain":
            self.asked += 1
        if verb in _CHANGING:
            for value in arguments:
                if type(value) is Remote:
                    value._forget()
        forms = [encode(value, self._refer) for value in arguments]
        self.channel.send([verb, forms, {name: encode(value, self._refer) for name, value in named.items()}])
        while True:
            reply = self.channel.receive()
            try:
                kind = reply[0]
                if kind == "value":
                    result = decode(reply[1], self._read)
                    if reply[2] is not None:
                        after = [decode(form, self._read) for form in reply[2]]
                        for mine, theirs in zip(arguments, after, strict=True):
                            _write_back(mine, theirs)
                    return result
                if kind == "raise":
                    error = self._error(reply)
                elif kind == "callback":
                    self._call_back(*reply[1:])
                    continue
                else:
                    raise ValueError(kind)
            except _MALFORMED:
                raise self.channel.fail("what was sent is no message") from None
            raise error

    def _error(self, reply: Any) -> BaseException:
        _, classes, text, arguments = reply
        kind = exception_class(list(classes), self._exceptions)
        try:
            return kind(*decode(arguments, self._read))
        except Exception:
            return Exception(_text(text))

    def _call_back(self, number: int, forms: Any, named: Any) -> None:
        function = self._callbacks[number]
        arguments = [decode(form, self._read) for form in forms]
        keywords = {_text(name): decode(form, self._read) for name, form in named.items()}
        try:
            reply = ["returned", encode(function(*arguments, **keywords), self._refer)]
        except Exception as error:
            reply = ["raised", type(error).__name__, str(error)[:300]]
        self.channel.send(reply)

    def _refer(self, value: Any) -> Any:
        kind = type(value)
        if kind is Remote:
            return {"o": value._number}
        if isinstance(value, type):
            for number, own in self._exceptions.items():
                if own is value:
                    return {"o": number}
        name = getattr(value, "__name__", None)
        if isinstance(name, str) and getattr(builtins, name, None) is value:
            return {"n": name}
        if callable(value):
            for number, known in enumerate(self._callbacks):
                if known is value:
                    return {"f": number}
            self._callbacks.append(value)
            return {"f": len(self._callbacks) - 1}
        raise Unsendable(
            f"a test gives the program an object of type {kind.__name__}; only plain values, functions and the "
            "program's own objects can be given to it"
        )

    def _read(self, tag: str, content: Any) -> Any:
        if tag == "f":
            return self._callbacks[content]
        if tag != "o":
            raise ValueError(f"unknown tag {tag!r}")
        number, kind, name, detail = content
        if type(number) is not int or not 0 <= number < _MAX_OBJECTS:
            raise ValueError("no number of an object")
        if number not in self._remotes:
            if kind == "class" and type(detail) is list:
                line = [[number, _text(name)], *map(_text, detail)]
                exception_class(line, self._exceptions)
            self._remotes[number] = Remote(self, number, _text(kind), _text(name), detail)
        if number in self._exceptions:
            return self._exceptions[number]
        return self._remotes[number]


def _may_be_given(name: str) -> bool:
    """Whether a program may give a test this name: `__builtins__` would be where the test looks for `abs`."""
    return name.isidentifier() and not (name.startswith("__") and name.endswith("__"))


def _text(value: Any) -> str:
    if type(value) is not str:
        raise ValueError("no text")
    return value


def _write_back(mine: Any, theirs: Any) -> None:
    """Give the lists, dicts and sets of an argument the content that the program left in its copies."""
    kind = type(mine)
    if kind is not type(theirs):
        return
    if kind is list:
        kept = mine[: len(theirs)]
        for at, old in enumerate(kept):
            _write_back(old, theirs[at])
        mine[:] = [_kept(old, new) for old, new in zip(kept, theirs, strict=False)] + theirs[len(kept) :]
    elif kind is dict:
        for key in mine.keys() & theirs.keys():
            _write_back(mine[key], theirs[key])
        merged = {key: _kept(mine.get(key), new) for key, new in theirs.items()}
        mine.clear()
        mine.update(merged)
    elif kind is set:
        mine.clear()
        mine.update(theirs)
    elif kind is bytearray:
        mine[:] = theirs
    elif kind is tuple:
        for old, new in zip(mine, theirs, strict=False):
            _write_back(old, new)


def _kept(old: Any, new: Any) -> Any:
    return old if type(old) is type(new) and type(old) in (list, dict, set, bytearray) else new


def visible_names(test: types.CodeType, names: dict[str, Any], entry_point: str | None) -> dict[str, Any]:
    """The program's names that a test may see: its own, and of those that hide real ones what is under test."""
    used = _names_used(test) & names.keys()
    if len(used) == 1 and not _is_module(names[next(iter(used))]):  # it is the one under test
        return {name: names[name] for name in used}
    hiding = {name for name in used if _real(name) is not None and name != entry_point}
    own = {name for name in used - hiding if not _is_module(names[name])}
    seen = {name: value for name, value in names.items() if name not in hiding and not _is_module(value)}
    if not own:
        return seen | {name: names[name] for name in hiding if not _is_module(names[name])}
    modules = {name: _module(name, names[name]._name) for name in used - own if _is_module(names[name])}
    real = {name: _real(name) for name in hiding if not _is_module(names[name])}
    return {
        **{name: value for name, value in seen.items() if name == entry_point or not hasattr(builtins, name)},
        **real,
        **{name: module for name, module in modules.items() if module is not None},
    }


def _names_used(code: types.CodeType) -> set[str]:
    used = {each.argval for each in dis.get_instructions(code) if each.opname in _NAME_LOADS}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            used |= _names_used(constant)
    return used


def _real(name: str) -> Any:
    """What a name means where no program defines it: a built-in, or a public name of a library for such things."""
    if hasattr(builtins, name):
        return getattr(builtins, name)
    for library in _LIBRARY:
        module = importlib.import_module(library)
        if name in getattr(module, "__all__", ()) or (not name.startswith("_") and name in vars(module)):
            return getattr(module, name)
    return None


def _is_module(value: Any) -> bool:
    return type(value) is Remote and value._kind == "module"


def _module(name: str, told: str) -> Any:
    """The real module that the program imported under this name; its own word is not enough."""
    wanted = _ALIASES.get(name, name)
    if wanted != told:
        return None
    try:
        return importlib.import_module(wanted)
    except Exception:
        return None


class _Solution(types.ModuleType):
    """`solution`, for tests that import the program."""

    def __init__(self, names: dict[str, Any]) -> None:
        super().__init__("solution")
        self.__dict__.update({name: value for name, value in names.items() if not _is_module(value)})

    def __getattr__(self, name: str) -> Any:
        if name == "__all__":
            return [name for name in vars(self) if not name.startswith("_") and _real(name) is None]
        raise AttributeError(f"the program defines no {name!r}")


def judge(channel: Channel, tests: list[str], entry_point: str | None, report: Any) -> None:
    """Run each test; `report(**event)` hears "loaded" or "failed", and one "test" for each."""
    client = Client(channel)
    try:
        names = client.names()
    except ChannelBroken as error:
        report(event="failed", error=str(error))
        return
    report(event="loaded")
    sys.modules["solution"] = _Solution(names)
    for index, test in enumerate(tests):
        why = _run(index, test, names, entry_point)
        if channel.broken:
            report(event="test", index=index, ok=False, error=channel.broken)
            return
        report(event="test", index=index, ok=not why, error=why)
    report(event="judged")


def _run(index: int, test: str, names: dict[str, Any], entry_point: str | None) -> str:
    """Why a test failed; "" where it passed."""
    try:
        code = compile(test, f"test_{index}.py", "exec", dont_inherit=True)
        exec(code, {"__name__": "solution_tests", **visible_names(code, names, entry_point)})
    except BaseException as error:
        return line_of(error) or type(error).__name__
    return ""
