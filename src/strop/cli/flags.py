"""Flags from declared fields: `--beta 0.2`, `--loss_type '[sigmoid, sft]'`, and the same names in a YAML file.

A value is read as YAML and fitted to the field's type, so numbers, lists, dictionaries and null need no flags of
their own. Unknown names are all reported together, each with the nearest known one.
"""

from __future__ import annotations

import dataclasses
import enum
import re
import shutil
import textwrap
import types
import typing
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
    argv: Sequence[str], flags: Mapping[str, Flag], renamed: Mapping[str, str] | None = None, verb: str = ""
) -> dict[str, Any]:
    """Values given on the command line and in `--config FILE` (the command line wins), by field name.

    Args:
        renamed: other names of flags, which the file may use as well.
        verb: the method that a run's own config.yaml may name.
    """
    given: dict[str, Any] = {}
    value: Any
    renamed = renamed or {}
    problems = []
    position = 0
    while position < len(argv):
        word = argv[position]
        position += 1
        if not word.startswith("--"):
            problems.append(f"{word!r} stands alone; every value follows a --flag.")
            continue
        name, has_value, value = word[2:].partition("=")
        name = name.replace("-", "_")
        if not has_value:
            follows = position < len(argv) and not argv[position].startswith("--")
            value = argv[position] if follows else "true"
            position += follows
            words = [value]
            while follows and position < len(argv) and not argv[position].startswith("--"):
                if name not in flags or list not in _plain_types(flags[name].hint):
                    break
                words.append(argv[position])
                position += 1
            value = words if len(words) > 1 else value
        if name.startswith("no_") and name not in flags and name[3:] in flags and value == "true":
            name, value = name[3:], "false"
        if name != "config" and name not in flags:
            problems.append(f"--{name} is not a flag.{did_you_mean(name, flags)}")
        elif name in given:
            problems.append(f"--{name} is given twice.")
        else:
            given[name] = value
    from_file = read_config(given.pop("config")) if "config" in given else {}
    from_file = {name.replace("-", "_"): value for name, value in from_file.items()}
    from_file = {renamed.get(name, name): value for name, value in from_file.items()}
    if (method := from_file.pop("method", verb).replace("_", "").replace("-", "")) != verb.replace("-", ""):
        problems.append(f"the config file is of a run of '{method}', and this is '{verb}'.")
    problems += [
        f"'{name}' in the config file is not a setting.{did_you_mean(name, flags)}"
        for name in from_file
        if name not in flags
    ]
    if problems:
        raise ConfigError.collect("These arguments cannot be used:", problems)
    values = {name: fit(value, flags[name]) for name, value in given.items()}
    return {**{name: fit(value, flags[name]) for name, value in from_file.items()}, **values}


def separate(argv: Sequence[str], flags: Sequence[Flag]) -> tuple[list[str], list[str]]:
    """The words that belong to no flag, and the flags with theirs; a flag of true or false takes no word."""
    alone = {flag.name for flag in flags if flag.hint is bool}
    free: list[str] = []
    taken: list[str] = []
    expected = False
    for word in argv:
        is_flag = word.startswith("--")
        (taken if is_flag or expected else free).append(word)
        expected = is_flag and "=" not in word and word[2:].replace("-", "_") not in alone
    return free, taken


def all_values(argv: Sequence[str], flags: Sequence[Flag]) -> dict[str, Any]:
    """The value of every flag: as given, else its default."""
    return {**{flag.name: flag.default for flag in flags}, **parse(argv, {flag.name: flag for flag in flags})}


def fit(value: Any, flag: Flag) -> Any:
    """A raw value as the type of its field; what does not fit is left for the config's own checks to refuse."""
    kinds = _plain_types(flag.hint)
    if isinstance(value, bool) and str in kinds and not kinds & {bool, list, dict}:
        value = "yes" if value else "no"  # YAML's own reading of a bare word
    if isinstance(value, str) and list in kinds and COMMA_LIST.fullmatch(value):
        value = value.split(",")
    if isinstance(value, list) and kinds & {int, float}:
        value = [_number_or_text(entry, kinds) if isinstance(entry, str) else entry for entry in value]
    if isinstance(value, str):
        if str in kinds and not kinds & {list, dict, bool}:
            return None if value == "null" and type(None) in kinds else _number_or_text(value, kinds)
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError:
            return value
        value = value if isinstance(parsed, str) else parsed
        if isinstance(value, str) and value.lower() == "none" and type(None) in kinds and str not in kinds:
            return None
    if isinstance(value, str) and kinds & {int, float}:
        return _number_or_text(value, kinds)
    if isinstance(value, list) and float in kinds:
        return [float(v) if isinstance(v, str) and _is_number(v) else v for v in value]
    return value


def _number_or_text(value: str, kinds: set[Any]) -> Any:
    if int in kinds and value.lstrip("+-").isdigit():
        return int(value)
    return float(value) if float in kinds and _is_number(value) else value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


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
    lines = [part for line in title.splitlines() for part in textwrap.wrap(line, width) or [""]] + [""]
    for group, flags in groups.items():
        lines.append(f"{group}:")
        for flag in flags:
            default = "" if flag.default is None else f" (default {flag.default!r})"
            lines.append(f"  --{flag.name}{default}")
            text = " ".join(part for part in (flag.help, f"[{flag.allowed}]" if flag.allowed else "") if part)
            text = text.replace("%%", "%")
            lines += textwrap.wrap(text, width, initial_indent="      ", subsequent_indent="      ")
        lines.append("")
    return "\n".join(lines)


def helped(argv: Sequence[str], title: str, flags: Sequence[Flag]) -> bool:
    """Whether nothing was given, or help was asked for; the help page is printed then."""
    if argv and not {"--help", "-h"} & set(argv):
        return False
    print(help_page(title, {"flags": flags}))
    return True
