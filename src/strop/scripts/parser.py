"""Command line and YAML file -> the dataclasses of a script, with every name that a config takes."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import logging
import os
import sys
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import yaml
from transformers import HfArgumentParser

from strop.errors import ConfigError, did_you_mean
from strop.scripts.arguments import ModelConfig
from strop.settings.config import TrainerConfig
from strop.settings.config_file import read_config
from strop.settings.schema import resolve_keywords

NOT_SETTINGS = ("config", "help")
TRUE_ELSEWHERE = ("remove_unused_columns", "dataloader_pin_memory", "logging_nan_inf_filter")
"""Settings that are on by default in transformers and off here, which scripts switch off by `--no_...`."""


class SettingsParser(HfArgumentParser):
    """transformers' parser of dataclasses, with every name that strop's configs know.

    Beside the fields of a config their other names are taken (`--max_new_tokens`), and the settings that strop does
    without are answered as the config answers them: with TRL's default they are passed over, else the error says what
    to do.
    """

    def __init__(self, dataclass_types: Any = None, **kwargs: Any) -> None:
        types = [] if dataclass_types is None else dataclass_types
        types = list(types) if isinstance(types, Iterable) else [types]
        super().__init__(types, **kwargs)
        for kind in types:
            if issubclass(kind, TrainerConfig):
                self._add_other_names(kind)

    def _add_other_names(self, kind: type[TrainerConfig]) -> None:
        actions = {action.dest: action for action in self._actions}
        for alias, target in kind.aliases.items():
            if like := actions.get(target):
                self._add_hidden(
                    f"--{alias}", dest=target, type=like.type, nargs=like.nargs, const=like.const, choices=like.choices
                )
        for name in TRUE_ELSEWHERE:
            self._add_hidden(f"--no_{name}", dest=name, action="store_false")
        for name in kind.removed:
            self._add_hidden(f"--{name}", dest=name, type=yaml.safe_load, nargs="?", const=True)

    def _add_hidden(self, flag: str, **how: Any) -> None:
        """A flag that help does not show and that has no default; one that is there already stays as it is."""
        with contextlib.suppress(argparse.ArgumentError):
            self.add_argument(flag, default=argparse.SUPPRESS, help=argparse.SUPPRESS, **how)

    def parse_args_into_dataclasses(self, *args: Any, **kwargs: Any) -> Any:
        """The parent's, where settings that strop does without have passed the config's own check."""
        removed = {name: kind for kind in self.dataclass_types for name in getattr(kind, "removed", {})}
        outputs = super().parse_args_into_dataclasses(*args, **kwargs)
        kept = []
        for output in outputs:
            if isinstance(output, argparse.Namespace):
                for name in [name for name in vars(output) if name in removed]:
                    resolve_keywords(removed[name], {name: getattr(output, name)})
                    delattr(output, name)
                if not vars(output):
                    continue
            if isinstance(output, ModelConfig):
                output.trust_remote_code = any(getattr(other, "trust_remote_code", False) for other in outputs)
            kept.append(output)
        return tuple(kept)

    def parse_dict(self, args: dict[str, Any], allow_extra_keys: bool = False) -> tuple[Any, ...]:
        """One instance of each dataclass from a mapping, a YAML or a JSON file, with every name that a config takes."""
        known: dict[type, set[str]] = {
            kind: {f.name for f in dataclasses.fields(kind) if f.init}
            | {*getattr(kind, "aliases", {}), *getattr(kind, "removed", {}), *getattr(kind, "holders", {})}
            for kind in self.dataclass_types
        }
        unknown = sorted(name for name in args if not any(name in names for names in known.values()))
        if unknown and not allow_extra_keys:
            every = set().union(*known.values())
            raise ConfigError.collect(
                "Settings that no config of this script has:",
                [f"{name}={args[name]!r:.60}.{did_you_mean(name, every)}" for name in unknown],
            )
        return tuple(kind(**{name: args[name] for name in args if name in names}) for kind, names in known.items())


class TrlParser(SettingsParser):
    """The parser with a YAML file of defaults in `--config`; the command line wins.

    The file may hold `env:`, a mapping of environment variables that are set first.
    """

    def __init__(self, dataclass_types: Any = None, **kwargs: Any) -> None:
        super().__init__(dataclass_types, **kwargs)
        for kind in self.dataclass_types:
            if "config" in {f.name for f in dataclasses.fields(kind)}:
                raise ConfigError(f"{kind.__name__} has a field named config, which is the flag of the settings file.")

    def parse_args_and_config(
        self,
        args: Iterable[str] | None = None,
        return_remaining_strings: bool = False,
        fail_with_unknown_args: bool = True,
        separate_remaining_strings: bool = False,
    ) -> tuple[Any, ...]:
        """One instance of each dataclass, in their order.

        Returns:
            The instances; then, with `return_remaining_strings`, what no field takes, of the file and of the command
            line (as two lists with `separate_remaining_strings`).

        Raises:
            ConfigError: the file cannot be read, or holds settings that no field takes and `fail_with_unknown_args`.
        """
        words = list(sys.argv[1:] if args is None else args)
        words, file = _take_config(words)
        unknown = self.set_defaults_with_config(**_read(file)) if file is not None else []
        parsed = self.parse_args_into_dataclasses(args=words, return_remaining_strings=return_remaining_strings)
        if return_remaining_strings:
            *parsed, rest = parsed
            return (*parsed, unknown, rest) if separate_remaining_strings else (*parsed, unknown + rest)
        if unknown and fail_with_unknown_args:
            known = [action.dest for action in self._actions]
            raise ConfigError.collect(
                f"--config {file} holds settings that this script does not take:",
                [f"{name[2:]}.{did_you_mean(name[2:], known)}" for name in unknown[::2]],
            )
        return tuple(parsed)

    def set_defaults_with_config(self, **values: Any) -> list[str]:
        """Values as defaults of the flags of their names, those of sub-commands too; what no flag takes comes back
        as words."""
        used = _set_defaults(self, values)
        return [word for name, value in values.items() if name not in used for word in (f"--{name}", str(value))]


def _take_config(words: list[str]) -> tuple[list[str], str | None]:
    """The words without `--config FILE` or `--config=FILE`, and the file."""
    for index, word in enumerate(words):
        if word.startswith("--config="):
            return words[:index] + words[index + 1 :], word.partition("=")[2]
        if word == "--config":
            if index + 1 == len(words):
                raise ConfigError("--config needs a YAML file.")
            return words[:index] + words[index + 2 :], words[index + 1]
    return words, None


def _read(file: str) -> dict[str, Any]:
    """Settings of a YAML file; its `env` is put into the environment."""
    settings = read_config(file)
    variables = settings.pop("env", {})
    if not isinstance(variables, dict):
        raise ConfigError(f"--config {file}: env must hold 'NAME: value' lines, found {type(variables).__name__}.")
    os.environ.update({str(name): str(value) for name, value in variables.items()})
    return settings


def _set_defaults(parser: argparse.ArgumentParser, values: Mapping[str, Any]) -> set[str]:
    used: set[str] = set()
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                used |= _set_defaults(inner, values)
            continue
        names = [action.dest, *(option.lstrip("-") for option in action.option_strings)]
        given = [name for name in names if name in values and name not in NOT_SETTINGS]
        if not given or f"no_{action.dest}" in given:
            continue
        used.update(given)
        if given[0] != action.dest:  # another name of a field: the default belongs to the field's own flag
            parser.set_defaults(**{action.dest: values[given[0]]})
        else:
            action.default = values[given[0]]
        action.required = False
    return used


def init_zero_verbose() -> None:
    """Errors alone are logged, and Python's warnings go to the log, not to the terminal."""
    from rich.logging import RichHandler

    logging.basicConfig(format="%(message)s", datefmt="[%X]", handlers=[RichHandler()], level=logging.ERROR)

    def to_log(message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
        logging.warning("%s:%s: %s: %s", filename, lineno, category.__name__, message)

    warnings.showwarning = to_log
