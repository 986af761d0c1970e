"""Flags from declared fields: `--beta 0.2`, `--loss_type '[sigmoid, sft]'`, and the same names in a YAML file.

A value is read as YAML and fitted to the field's type, so numbers, lists, dictionaries and null need no flags of
their own. Unknown names are all reported together, each with the nearest known one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import functools
import re
import shutil
import textwrap
import types
import typing
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_origin

import yaml

from strop.errors import ConfigError, did_you_mean
from strop.settings.config_file import read_config

WIDEST = 100
"""Columns of a help page."""
COMMA_LIST = re.compile(r"[\w.:/+-]+(,[\w.:/+-]+)+")
"""A list as people write it: `q_proj,v_proj`."""


@dataclasses.dataclass(frozen=True)
class Flag:
    """One flag: its name, its type (a type hint), its default and what it does."""

    name: str
    hint: Any = str
    default: Any = None
    help: str = ""
    allowed: str = ""


def parse(
    argv: Sequence[str],
    flags: Mapping[str, Flag],
    renamed: Mapping[str, str] | None = None,
    verb: str = "",
    words: list[str] | None = None,
) -> dict[str, Any]:
    """Values given on the command line and in `--config FILE` (the command line wins), by field name.

    Args:
        renamed: other names of flags.
        verb: the method that a run's own config.yaml may name.
        words: gets the words that belong to no flag; None: there must be none.
    """
    given: dict[str, Any] = {}
    called: dict[str, str] = {}  # flag -> the name that it was given by
    renamed = renamed or {}
    known = [*flags, *renamed]
    value: Any
    problems, rest = [], deque(argv)
    while rest:
        word = rest.popleft()
        if not word.startswith("--"):
            if words is None:
                problems.append(f"{word!r} stands alone; every value follows a --flag.")
            else:
                words.append(word)
            continue
        said, has_value, value = word[2:].partition("=")
        name = _known_as(said, flags, renamed)
        value = value if has_value else _value_of(flags.get(name), rest, words)
        if name.startswith("no_") and name not in flags and name[3:] in flags and value == "true":
            name, value = name[3:], "false"
        if name != "config" and name not in flags:
            problems.append(f"--{name} is not a flag.{did_you_mean(name, known)}")
        elif name in given:
            also = f"and --{called[name]} are one setting, and both are given; keep one."
            problems.append(f"--{said} {'is given twice.' if said == called[name] else also}")
        else:
            given[name], called[name] = value, said
    from_file: dict[str, Any] = {}
    for said, value in read_config(given.pop("config")).items() if "config" in given else ():
        name = _known_as(said, flags, renamed)
        if name in from_file:
            problems.append(f"'{called[name]}' and '{said}' in the config file are one setting; keep one.")
        from_file[name], called[name] = value, said
    if (method := from_file.pop("method", verb).replace("_", "").replace("-", "")) != verb.replace("-", ""):
        problems.append(f"the config file is of a run of '{method}', and this is '{verb}'.")
    problems += [
        f"'{name}' in the config file is not a setting.{did_you_mean(name, known)}"
        for name in from_file
        if name not in flags
    ]
    if problems:
        raise ConfigError.collect("These arguments cannot be used:", problems)
    values = {name: fit(value, flags[name]) for name, value in given.items()}
    return {**{name: fit(value, flags[name]) for name, value in from_file.items()}, **values}


def _known_as(name: str, flags: Mapping[str, Flag], renamed: Mapping[str, str]) -> str:
    name = name.replace("-", "_")
    return name if name in flags else renamed.get(name, name)


def _value_of(flag: Flag | None, rest: deque[str], words: list[str] | None) -> str | list[str]:
    """What follows a flag, taken from the rest of the line: nothing, a word, or all words of a list.

    Where words may stand alone (`strop recommend FILE`), a flag of true or false takes none, since the next may be such
    a word, and a list takes a single one as long as no such word has come.
    """
    kinds = set() if flag is None else _plain_types(flag.hint)
    most = 1
    if list in kinds and words != []:
        most = len(rest)
    elif kinds == {bool} and words is not None:
        most = 0
    taken: list[str] = []
    while rest and len(taken) < most and not rest[0].startswith("--"):
        taken.append(rest.popleft())
    return taken if len(taken) > 1 else taken[0] if taken else "true"


def all_values(argv: Sequence[str], flags: Sequence[Flag], words: list[str] | None = None) -> dict[str, Any]:
    """The value of every flag: as given, else its default; `words` as for `parse`."""
    by_name = {flag.name: flag for flag in flags}
    return {**{flag.name: flag.default for flag in flags}, **parse(argv, by_name, words=words)}


def fit(value: Any, flag: Flag) -> Any:
    """A raw value as the type of its field; what does not fit is left for the config's own checks to refuse."""
    kinds = _plain_types(flag.hint)
    if isinstance(value, bool) and str in kinds and not kinds & {bool, list, dict}:
        value = "yes" if value else "no"  # YAML's own reading of a bare word
    if isinstance(value, str):
        if list in kinds and COMMA_LIST.fullmatch(value):
            value = value.split(",")
        elif str in kinds and not kinds & {list, dict, bool}:
            return None if value == "null" and type(None) in kinds else _number_or_text(value, kinds)
        else:
            with contextlib.suppress(yaml.YAMLError):
                parsed = yaml.safe_load(value)
                value = value if isinstance(parsed, str) else parsed
            if isinstance(value, str) and value.lower() == "none" and type(None) in kinds and str not in kinds:
                return None
    if isinstance(value, list):
        return [_number_or_text(entry, kinds) for entry in value]
    return _number_or_text(value, kinds)


def _number_or_text(value: Any, kinds: set[Any]) -> Any:
    """A text that is a number of one of these kinds as that number; all else as it is."""
    for kind in (int, float):
        if kind in kinds and isinstance(value, str):
            with contextlib.suppress(ValueError):
                return kind(value)
    return value


def _plain_types(hint: Any) -> set[Any]:
    """The plain types that a hint allows, unions and annotations opened; items of lists included."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is typing.Annotated:
        return _plain_types(args[0])
    if origin in (typing.Union, types.UnionType):
        return set().union(*(_plain_types(a) for a in args))
    if origin is typing.Literal:
        return {type(a) for a in args}
    if origin is list:
        return {list} | set().union(*(_plain_types(a) for a in args))
    if hint is Any:
        return {str}
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return {str}  # of names
    return {origin or hint}


def help_page(title: str, groups: Mapping[str, Sequence[Flag]]) -> str:
    """Flags by group, with defaults and allowed values, as wide as the terminal and no wider than is read easily."""
    width = min(shutil.get_terminal_size().columns, WIDEST)
    wrap = functools.partial(textwrap.wrap, width=width, break_long_words=False, break_on_hyphens=False)
    lines = [part for line in title.splitlines() for part in wrap(line) or [""]] + [""]
    for group, flags in groups.items():
        lines.append(f"{group}:")
        for flag in flags:
            default = "" if flag.default is None else f" (default {flag.default!r})"
            lines += wrap(f"  --{flag.name}{default}", subsequent_indent="      ")
            text = " ".join(part for part in (flag.help, f"[{flag.allowed}]" if flag.allowed else "") if part)
            text = text.replace("%%", "%")
            lines += wrap(text, initial_indent="      ", subsequent_indent="      ")
        lines.append("")
    return "\n".join(lines)
