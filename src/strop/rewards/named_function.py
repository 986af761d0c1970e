"""The function that a string names: a verifier, `package.module.function`, or `path/file.py:function`.

Modules are looked for in the working directory too, where scripts and config files are.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle

from strop.errors import ConfigError, SetupError, did_you_mean

VERIFIERS = (
    *("accuracy_reward", "reasoning_accuracy_reward", "think_format_reward"),
    *("exact_match_reward", "length_reward", "code_reward"),
)
"""Rewards that can be asked for by name; `reasoning_gym:TASK` is understood too."""

_DOTTED = re.compile(r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*[.:][A-Za-z_]\w*$")


def function_by_name(name: str) -> Any:
    """The function that a string names; the string itself if it must be the place of a model.

    Raises:
        ConfigError: it names something else than a function.
        SetupError: the module or file cannot be imported.
    """
    if name in VERIFIERS:
        return getattr(importlib.import_module("strop.rewards"), name)
    if name.startswith("reasoning_gym:"):
        from strop.rewards.gym_scores import reasoning_gym_reward

        return reasoning_gym_reward(name.partition(":")[2])
    path, _, attribute = name.rpartition(":")
    if path.endswith(".py"):
        return _attribute(name, _module_of_file(name, Path(path).expanduser()), attribute)
    if name.endswith(".py"):
        raise ConfigError(f"The reward '{name}' is a file. Name the function in it too: {name}:FUNCTION.")
    if os.path.exists(name) or not _DOTTED.match(name):
        if "/" not in name and not os.path.exists(name) and (hint := did_you_mean(name, VERIFIERS)):
            raise ConfigError(f"There is no reward called '{name}'.{hint}")
        return name
    module, _, attribute = name.replace(":", ".").rpartition(".")
    _look_in(Path.cwd())
    return _attribute(name, _imported(name, lambda: importlib.import_module(module)), attribute)


def _module_of_file(name: str, path: Path) -> ModuleType:
    """The module in a file, under a name that no other module has; what it imports may stand beside it."""
    if not path.is_file():
        raise SetupError(f"The reward '{name}': there is no file {path} (from {Path.cwd()}).")
    _look_in(path.resolve().parent)
    unique = f"reward_file_{re.sub(r'[^0-9A-Za-z]', '_', str(path.resolve()))}"
    if unique in sys.modules:
        return sys.modules[unique]
    spec = importlib.util.spec_from_file_location(unique, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[unique] = module
    try:
        _imported(name, lambda: spec.loader.exec_module(module))  # type: ignore[union-attr]
    except SetupError:
        del sys.modules[unique]
        raise
    cloudpickle.register_pickle_by_value(module)  # a process of its own could not import it by that name
    return module


def _look_in(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.append(str(folder))  # last, so that it hides nothing that is installed


def _imported(name: str, load: Any) -> Any:
    try:
        return load()
    except Exception as error:  # it runs the user's code
        raise SetupError(
            f"The reward '{name}' cannot be imported: {type(error).__name__}: {error}. Give package.module.function, "
            "path/file.py:function, the name of a built-in reward, or a model id or directory."
        ) from error


def _attribute(name: str, module: ModuleType, attribute: str) -> Any:
    function = getattr(module, attribute, None)
    if function is None:
        found = [key for key, value in vars(module).items() if callable(value)]
        raise SetupError(
            f"The reward '{name}' cannot be imported: there is no '{attribute}'.{did_you_mean(attribute, found)}"
        )
    if not callable(function):
        raise ConfigError(f"The reward '{name}' is not a function; it is a {type(function).__name__}.")
    return function
