"""`trl`, answered by strop, in one process: what a script imports from it is strop's own.

Every module path below `trl` exists, as scripts of many releases name many. A name is looked for among strop's own;
one that strop has not is an ImportError that says what to use, at the line that imports it.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Sequence
from functools import partial
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from accelerate.utils import compare_versions

import strop
import strop.losses
import strop.rewards
from strop.errors import ConfigError, did_you_mean
from strop.methods.registry import METHODS
from strop.scripts.missing_names import asked_by_import, missing
from strop.scripts.names import instead_of
from strop.settings.config import TrainerConfig

VERSION = "1.16.0"
"""The release of TRL whose names and settings are followed."""

SIMPLE_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message.role | capitalize }}: {{ message.content }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
OWN: dict[str, Any] = {"__version__": VERSION, "SIMPLE_CHAT_TEMPLATE": SIMPLE_CHAT_TEMPLATE}
"""Constants that scripts read."""
RENAMED = {
    "disable_dropout_in_model": ("strop.model", "disable_dropout"),
    "set_seed": ("transformers", "set_seed"),
}
LATE = ("HfPairwiseJudge", "OpenAIPairwiseJudge", "PairRMJudge")
"""Judges that scripts import in any case, and make where an option asks for one."""
MODULES = (
    "chat_template_utils", "commands", "core", "data_utils", "environment", "experimental", "extras", "import_utils",
    "judges", "models", "rewards", "scripts", "trainer", "utils",
    *(f"{method.module.rsplit('.', 1)[1]}_{part}" for method in METHODS for part in ("trainer", "config")),
)  # fmt: skip
"""Modules of TRL that scripts import as names of their package."""


class Asked:
    """What a script took from `trl`: names in their order, and the configs that it made."""

    def __init__(self) -> None:
        self.names: dict[str, None] = {}
        self.configs: list[TrainerConfig] = []

    def recording(self, config_class: type[TrainerConfig]) -> type[TrainerConfig]:
        """The config class, whose instances are noted here and are plain instances of it afterwards."""
        configs = self.configs

        def __post_init__(self: TrainerConfig) -> None:
            config_class.__post_init__(self)
            if type(self) is recorder:
                self.__class__ = config_class  # a checkpoint holds the config under the name of its class
            self.given = frozenset(vars(self))  # TRL's defaults count as the script's choice
            configs.append(self)

        recorder = type(config_class.__name__, (config_class,), {"__post_init__": __post_init__})
        return recorder


class ServedModule(ModuleType):
    """A module of `trl` whose names are looked up on first use."""

    asked: Asked

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__version__":
            raise AttributeError(name)
        if f"{self.__name__}.{name}" in sys.modules:
            return sys.modules[f"{self.__name__}.{name}"]
        if name in MODULES:
            raise AttributeError(name)  # so that the import system looks for the module
        try:
            value = look_up(name)
        except ImportError as error:
            if asked_by_import(inspect.currentframe()):
                raise missing(name, "trl", problem_of) from None
            raise AttributeError(str(error)) from None  # so that `hasattr` can answer
        if isinstance(value, type) and issubclass(value, TrainerConfig):
            value = self.asked.recording(value)
        self.asked.names[name] = None
        setattr(self, name, value)
        return value


def look_up(name: str) -> Any:
    """What strop has under a name of TRL's.

    Raises:
        ImportError: nothing; the message says what to use.
    """
    if name in OWN:
        return OWN[name]
    if name in RENAMED:
        module, attribute = RENAMED[name]
        return getattr(importlib.import_module(module), attribute)
    if name.startswith("is_") and name.endswith("_available"):
        return partial(is_installed, name.removeprefix("is_").removesuffix("_available"))
    for place in (strop, strop.rewards, strop.losses):
        if name in place.__all__:
            return getattr(place, name)
    if name in LATE:
        return refusing(name)
    known = [*strop.__all__, *strop.rewards.__all__]
    raise ImportError(instead_of(name) or f"strop has no '{name}', which TRL may have had.{did_you_mean(name, known)}")


def refusing(name: str) -> type:
    """A class that says what to use when it is made: scripts import it for one of their options."""

    def refuse(self: object, *args: Any, **kwargs: Any) -> None:
        raise ConfigError(instead_of(name))

    return type(name, (), {"__init__": refuse})


def problem_of(name: str) -> str:
    """What to use in place of a name that `look_up` does not find; empty for one that it does."""
    if name not in MODULES:
        try:
            look_up(name)
        except ImportError as error:
            return str(error)
    return ""


def is_installed(package: str, min_version: str | None = None) -> bool:
    """Whether a package is there, and no older than `min_version`."""
    if find_spec(package) is None:
        return False
    return min_version is None or compare_versions(package, ">=", min_version)


class Finder(MetaPathFinder, Loader):
    """Finds `trl` and every module below it."""

    def __init__(self) -> None:
        self.asked = Asked()

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        if fullname != "trl" and not fullname.startswith("trl."):
            return None
        if fullname.rpartition(".")[2] in strop.__all__:
            return None  # `from trl import DPOConfig` is a name, not a module
        return ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = ServedModule(spec.name)
        module.__path__ = []
        module.asked = self.asked
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run: names are looked up when they are asked for."""


def serve_trl() -> Asked:
    """From here on this process finds strop under the name `trl`; returns what is asked of it."""
    for name in [name for name in sys.modules if name == "trl" or name.startswith("trl.")]:
        del sys.modules[name]
    finder = Finder()
    sys.meta_path.insert(0, finder)
    return finder.asked
