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
    from strop.errors import did_you_mean

    message = instead_of(name) or f"module 'strop' has no attribute '{name}'.{did_you_mean(name, __all__)}"
    # `from strop import x` asks twice, first through the import system, and says nothing of an AttributeError.
    frame = inspect.currentframe()
    asker = frame.f_back.f_code.co_name if frame is not None and frame.f_back is not None else ""
    asked_by_import = asker == "_handle_fromlist" and not name.startswith("_")
    if asked_by_import and find_spec(f"strop.{name}") is None:
        raise ImportError(message, name="strop")
    raise AttributeError(message)


def __dir__() -> list[str]:
    return sorted(__all__)
