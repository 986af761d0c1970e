"""What tests of strop, and of trainers built on it, run on. Nothing but tests imports this package.

`check_trainer(MyTrainer)` runs every check that applies to a trainer, on CPU, in seconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from strop.testing.check import check_trainer

__all__ = ["check_trainer"]


def __getattr__(name: str) -> Any:
    """`check_trainer`, imported on first use: it needs torch, and toy tokenizers do not."""
    if name == "check_trainer":
        from strop.testing.check import check_trainer

        return check_trainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
