"""strop: post-training for language models. Fifteen methods, one engine, every gradient proved.

from strop import DPOTrainer, DPOConfig

Trainers and configs are loaded on first use, so that `import strop` stays fast and free of torch.
"""

from __future__ import annotations

from typing import Any

from strop.methods.registry import BY_CLASS

__version__ = "0.1.0"

__all__ = ["__version__", *sorted(BY_CLASS)]


def __getattr__(name: str) -> Any:
    if name in BY_CLASS:
        import importlib

        return getattr(importlib.import_module(BY_CLASS[name].module), name)
    from strop.errors import did_you_mean

    raise AttributeError(f"module 'strop' has no attribute '{name}'.{did_you_mean(name, __all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)
