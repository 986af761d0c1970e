"""How a config field is declared: its type, its range and its one description, all in one place.

    @config
    class DPOConfig(TrainerConfig):
        beta: Annotated[float, Range(min=0, open_min=True)] = 0.1
        '''Strength of the pull towards the reference model.'''

`@config` makes the dataclass, reads the string under each field as its description (command-line help, docs and
error text are generated from it; a field that is declared anew without one keeps its parent's), accepts the aliases a
class declares in `aliases`, and turns an unknown keyword into a `ConfigError` that names the nearest field.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import math
import textwrap
import types
import typing
from collections.abc import Callable
from typing import Any, Literal, TypeVar, Union, dataclass_transform, get_args, get_origin, get_type_hints

from strop.errors import ConfigError, did_you_mean

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Range:
    """Allowed interval of a number: [min, max], open at an end where `open_min` / `open_max` says so."""

    min: float = -math.inf
    max: float = math.inf
    open_min: bool = False
    open_max: bool = False

    def __contains__(self, value: float) -> bool:
        low = value > self.min if self.open_min else value >= self.min
        high = value < self.max if self.open_max else value <= self.max
        return low and high

    def __str__(self) -> str:
        low = "" if self.min == -math.inf else f"{'>' if self.open_min else '>='} {self.min:g}"
        high = "" if self.max == math.inf else f"{'<' if self.open_max else '<='} {self.max:g}"
        return " and ".join(part for part in (low, high) if part)


@dataclasses.dataclass(frozen=True)
class OneOrMore:
    """Beside a list in an annotation: a single value may stand for a list."""

    def __str__(self) -> str:
        return "or one value"


@dataclass_transform(field_specifiers=(dataclasses.field,))
def config(cls: type[T]) -> type[T]:
    """Class decorator: a dataclass with described fields, aliases and friendly errors for unknown keywords."""
    cls = dataclasses.dataclass(cls)
    for name, text in {**_described_above(cls), **_described_fields(cls)}.items():
        own = cls.__dataclass_fields__[name]  # type: ignore[attr-defined]
        own.metadata = types.MappingProxyType({**own.metadata, "help": text})
    cls.__init__ = _friendly_init(cls)  # type: ignore[misc]
    return cls


def _friendly_init(cls: type) -> Callable[..., None]:
    generated = cls.__init__

    @functools.wraps(generated)
    def __init__(self: object, *args: Any, **kwargs: Any) -> None:
        keywords = resolve_keywords(cls, kwargs)
        generated(self, *args, **keywords)

    return __init__


class FriendlyKeywords(type):
    """Metaclass of configs: what `config` gives a class, a plain `@dataclass` made from it has too.

    Such a class has an `__init__` of its own, which knows no other names.
    """

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        plain = "__dataclass_params__" in vars(cls) and not hasattr(cls.__init__, "__wrapped__")
        return super().__call__(*args, **(resolve_keywords(cls, kwargs) if plain else kwargs))


def resolve_keywords(cls: type, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments with aliases replaced by field names; all unknown ones are reported together."""
    aliases: dict[str, str] = getattr(cls, "aliases", {})
    removed: dict[str, str] = getattr(cls, "removed", {})
    known = {f.name for f in dataclasses.fields(cls) if f.init}
    resolved: dict[str, Any] = {}
    problems = []
    for name, value in spread(cls, kwargs).items():
        target = aliases.get(name, name) if name not in known else name
        if target not in known:
            if name in removed and asks_for_nothing(cls, name, value):
                continue
            hint = f" {removed[name]}" if name in removed else did_you_mean(name, [*known, *aliases])
            problems.append(f"{name}={value!r} is not a field of {cls.__name__}.{hint}")
        elif value is None and (target in kwargs if target != name else target in _lists_or_one(cls)):
            continue  # the parser's way to say nothing
        elif target in resolved or (target != name and target in kwargs):
            problems.append(f"{name} is another name of {target}, and both are given; keep one.")
        else:
            resolved[target] = value.tolist() if type(value).__module__ == "numpy" else value
    if problems:
        raise ConfigError.collect(f"{cls.__name__} cannot be made from these arguments:", problems)
    return resolved


def spread(cls: type, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Keywords with those that hold others (`generation_kwargs`) replaced by what they hold, which wins."""
    holders: dict[str, tuple[str, ...]] = getattr(cls, "holders", {})
    aliases: dict[str, str] = getattr(cls, "aliases", {})
    anyway: dict[str, tuple[Any, ...]] = getattr(cls, "held_anyway", {})
    for holder, names in holders.items():
        if not isinstance(inside := kwargs.get(holder), dict):
            continue
        idle = {n for n, value in inside.items() if n in anyway and (not anyway[n] or value in anyway[n])}
        inside = {name: value for name, value in inside.items() if name not in idle}
        if set(inside) <= {*names}:
            held: dict[str, Any] = {aliases.get(str(name), str(name)): value for name, value in inside.items()}
            others = {name: v for name, v in kwargs.items() if name != holder and aliases.get(name, name) not in held}
            kwargs = {**others, **held}
    return kwargs


def asks_for_nothing(cls: type, name: str, value: Any) -> bool:
    """Whether a setting that is not used has the value by which TRL leaves it alone: nothing, or TRL's default."""
    return (
        value is None or value is False or value in ([], {}, "") or value in getattr(cls, "neutral", {}).get(name, ())
    )


def validate(instance: Any) -> list[str]:
    """Problems with the declared fields of a config: wrong choices, wrong types, values out of range."""
    hints = _type_hints(type(instance))  # type: ignore[arg-type]
    problems = []
    for f in dataclasses.fields(instance):
        if f.name in hints and "help" in f.metadata and (problem := _check(getattr(instance, f.name), hints[f.name])):
            problems.append(f"{f.name}={getattr(instance, f.name)!r}: {problem}")
    return problems


def describe(cls: type) -> dict[str, tuple[str, str]]:
    """Field name -> (allowed values as text, description), for help pages and docs."""
    hints = _type_hints(cls)
    return {
        f.name: (allowed(hints.get(f.name, Any)), f.metadata.get("help", ""))
        for f in dataclasses.fields(cls)  # type: ignore[arg-type]
        if f.init
    }


def field_hints(cls: type) -> dict[str, Any]:
    """Type hints of all init fields, those of parents outside strop included."""
    own = _type_hints(cls)
    return {f.name: own.get(f.name, f.type) for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]


def allowed(hint: Any) -> str:
    """A type hint as a reader sees it: `float >= 0`, `"a" | "b"`, `int or None`."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is typing.Annotated:
        return " ".join([allowed(args[0]), *(str(a) for a in args[1:] if isinstance(a, (Range, OneOrMore)))])
    if origin is Literal:
        return " | ".join(repr(a) for a in args)
    if origin in (Union, types.UnionType):
        return " or ".join("None" if a is type(None) else allowed(a) for a in args)
    if origin is not None:
        inner = ", ".join(allowed(a) for a in args)
        return f"{getattr(origin, '__name__', origin)}[{inner}]"
    return getattr(hint, "__name__", str(hint))


def _check(value: Any, hint: Any) -> str | None:
    """None if `value` fits the type hint, else what would."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any or isinstance(hint, TypeVar):
        return None
    if origin is typing.Annotated:
        single = OneOrMore() in args and not isinstance(value, (list, tuple))
        if problem := _check([value] if single else value, args[0]):
            return problem if get_origin(args[0]) is Literal else f"must be {allowed(hint)}"
        ranges = [a for a in args[1:] if isinstance(a, Range)]
        numbers = value if isinstance(value, (list, tuple)) else [value]
        if all(n in r for r in ranges for n in numbers if isinstance(n, (int, float))):
            return None
        return f"must be {' and '.join(map(str, ranges))}"
    if origin is Literal:
        return (
            None
            if value in args
            else f"choose one of {', '.join(map(repr, args))}.{did_you_mean(str(value), map(str, args))}"
        )
    if origin in (Union, types.UnionType):
        problems = [_check(value, a) for a in args]
        if None in problems:
            return None
        specific = [
            p for p, a in zip(problems, args, strict=True) if p and get_origin(a) in (typing.Annotated, Literal)
        ]
        return specific[0] if specific else f"must be {allowed(hint)}"
    if origin is list and isinstance(value, (list, tuple)):
        return next((p for p in (_check(v, args[0]) for v in value) if p), None)
    expected = origin or hint
    if not isinstance(expected, type) or (value is None and expected is type(None)):
        return None
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return None
    if isinstance(value, bool) and expected in (int, float):
        return f"must be {allowed(hint)}"
    return None if isinstance(value, expected) else f"must be {allowed(hint)}"


@functools.cache
def _type_hints(cls: Any) -> dict[str, Any]:
    """Resolved hints of the fields that strop declares (a parent's own fields are checked by the parent)."""
    hints: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if base.__module__.startswith("transformers") or base is object:
            continue
        own = {name: None for name in inspect.get_annotations(base)}
        hints |= {k: v for k, v in get_type_hints(base, include_extras=True).items() if k in own}
    return hints


@functools.cache
def _lists_or_one(cls: type) -> set[str]:
    """Fields that hold a list or one value, and never None."""
    return {
        name
        for name, hint in _type_hints(cls).items()
        if get_origin(hint) is typing.Annotated and OneOrMore() in get_args(hint)
    }


def _described_above(cls: type) -> dict[str, str]:
    """What the parent says of fields that are declared anew, with another default or range."""
    known = getattr(cls.__base__, "__dataclass_fields__", {})
    anew = [name for name in inspect.get_annotations(cls) if name in known]
    return {name: known[name].metadata["help"] for name in anew if "help" in known[name].metadata}


def _described_fields(cls: type) -> dict[str, str]:
    """The strings under the fields of one class body, whitespace folded."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, SyntaxError):
        return {}
    found = {}
    for node, after in itertools.pairwise(next(node for node in tree.body if isinstance(node, ast.ClassDef)).body):
        match node, after:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = " ".join(text.split())
    return found
