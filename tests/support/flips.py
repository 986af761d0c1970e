"""How a config field is moved away from its default, and what must be seen to change.

The value comes from the declaration: the other bool, another allowed name, another number of the range. Where that is
not enough, or another setting must be on for the field to act, `tests.support.option_table` has an entry.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import json
import types
import typing
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from transformers import TrainingArguments

from strop.settings.schema import Range, field_hints
from tests.support.observation import differences, observe

DERIVE: Any = object()
"""Stands for "the value that the declaration gives"."""


@dataclasses.dataclass(frozen=True)
class Flip:
    """One field moved.

    Attributes:
        value: the other value, or `DERIVE`.
        seen: the aspect of `observe` that must change.
        given: settings of both runs: what must be on for the field to act.
        make: (verb, folder) -> further arguments of `make_trainer` for both runs.
        before: called with either trainer before it trains.
        within: makes a context around either run; what it yields is the aspect "extra".
    """

    value: Any = DERIVE
    seen: str = "weights"
    given: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    make: Callable[[str, Path], Mapping[str, Any]] | None = None
    before: Callable[[Any], None] | None = None
    within: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext


class NoValue(LookupError):
    """A field's declaration gives no other value, so the table must."""


def derived(hint: Any, default: Any) -> Any:
    """A value that a type hint allows, other than the default.

    Raises:
        NoValue: the hint is a plain text, a list or a dictionary, which say nothing about what would be a value.
    """
    for value in candidates(hint, default):
        if value != default and value is not None:
            return value
    raise NoValue(f"{hint} gives no value other than {default!r}")


def candidates(hint: Any, default: Any) -> list[Any]:
    """Values of a type hint, the ones a user is likelier to write first."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is typing.Annotated:
        ranges = [a for a in args[1:] if isinstance(a, Range)]
        return [value for value in candidates(args[0], default) if all(value in r for r in ranges)]
    if origin is Literal:
        return list(args)
    if origin in (typing.Union, types.UnionType):
        return [value for a in args for value in candidates(a, default)]
    if hint is bool:
        return [True, False]
    number = default if isinstance(default, (int, float)) else 0
    if hint is int:
        return [number * 2, number + 1, max(number // 2, 1)]
    if hint is float:
        return [number * 2.0, number / 2, 0.3, number + 1.0]
    return []


def allowed_names(hint: Any) -> list[Any]:
    """The names a field may take, where its declaration lists them."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return list(args)
    if origin is typing.Annotated or origin in (typing.Union, types.UnionType):
        return [name for a in args for name in allowed_names(a)]
    return []


@functools.cache
def own_fields(config_class: type) -> tuple[str, ...]:
    """Fields that strop declares, those that it takes over from `TrainingArguments` included, if they ask for
    anything."""
    names = [f.name for f in dataclasses.fields(config_class) if f.init]  # type: ignore[arg-type]
    return tuple(n for n in names if owner(config_class, n) is not None and not asks_for_nothing(config_class, n))


def asks_for_nothing(config_class: Any, name: str) -> bool:
    """Whether each of a field's two values is its default or a neutral one."""
    neutral = config_class.neutral.get(name, ())
    hint, default = hints_and_defaults(config_class)[name]
    return hint is bool and {True, False} <= {default, *neutral}


@functools.cache
def hints_and_defaults(config_class: Any) -> dict[str, tuple[Any, Any]]:
    """Type hint and default of every field, by name."""
    hints = field_hints(config_class)
    return {f.name: (hints[f.name], f.default) for f in dataclasses.fields(config_class) if f.init}


def inherited_fields() -> list[str]:
    """Fields of `transformers.TrainingArguments`."""
    return [f.name for f in dataclasses.fields(TrainingArguments) if f.init]


@functools.cache
def owner(config_class: type, name: str) -> type | None:
    """The class of strop whose body declares a field last; None for fields of transformers."""
    for base in config_class.__mro__:
        if base.__module__.startswith("strop") and name in inspect.get_annotations(base):
            return base
    return None


def value_of(flip: Flip, config_class: type, name: str) -> Any:
    """The value that a field is moved to."""
    if flip.value is not DERIVE:
        return flip.value
    return derived(*hints_and_defaults(config_class)[name])


def run(flip: Flip, verb: str, folder: Path, **settings: Any) -> dict[str, Any]:
    """What a run with the flip's surroundings, and further settings, is seen to do."""
    folder.mkdir(parents=True)
    make = flip.make(verb, folder) if flip.make is not None else {}
    return observe(verb, folder, make=make, before=flip.before, within=flip.within, **{**flip.given, **settings})


_plain: dict[Any, dict[str, Any]] = {}  # what `plain_run` knows


def plain_run(flip: Flip, verb: str, folder: Path) -> dict[str, Any]:
    """What a run with the flip's surroundings alone is seen to do; one run serves all fields that share them."""
    key = (verb, json.dumps(flip.given, sort_keys=True), flip.make, flip.before, flip.within)
    if key not in _plain:
        _plain[key] = run(flip, verb, folder)
    return _plain[key]


def changed(flip: Flip, verb: str, folder: Path, name: str, value: Any) -> tuple[set[str], dict[str, Any]]:
    """Aspects in which a run with the field at `value` differs from one without it, and what the former did."""
    plain, moved = plain_run(flip, verb, folder / "plain"), run(flip, verb, folder / "moved", **{name: value})
    return differences(plain, moved), moved
