"""strop: post-training for language models. Fifteen methods, one engine, every gradient proved.

from strop import DPOTrainer, DPOConfig

Trainers, configs and the names that scripts import beside them are loaded on first use, so that `import strop` stays
fast and free of torch.
"""

from __future__ import annotations

import importlib
import inspect
from importlib.util import find_spec
from typing import Any

from strop.methods.registry import BY_CLASS
from strop.scripts.names import SCRIPT_NAMES, instead_of

__version__ = "0.1.0"

__all__ = ["__version__", *sorted({*BY_CLASS, *SCRIPT_NAMES})]


def __getattr__(name: str) -> Any:
    if name in BY_CLASS:
        return getattr(importlib.import_module(BY_CLASS[name].module), name)
    if name in SCRIPT_NAMES:
        return getattr(importlib.import_module(SCRIPT_NAMES[name]), name)
    problem = _problem_of(name)
    # `from strop import x` asks twice, first through the import system, and says nothing of an AttributeError.
    if problem and not name.startswith("_"):
        from strop.scripts.missing_names import asked_by_import, missing

        if asked_by_import(inspect.currentframe()):
            raise missing(name, "strop", _problem_of)
    raise AttributeError(problem or name)


def _problem_of(name: str) -> str:
    """What to use in place of a name that is not here; empty for one that is."""
    from strop.errors import did_you_mean

    if name in __all__ or find_spec(f"strop.{name}") is not None:
        return ""
    return instead_of(name) or f"module 'strop' has no attribute '{name}'.{did_you_mean(name, __all__)}"


def __dir__() -> list[str]:
    return sorted(__all__)
