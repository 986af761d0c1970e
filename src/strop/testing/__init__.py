"""What tests of strop, and of trainers built on it, run on. Nothing but tests imports this package.

`check_trainer(MyTrainer)` runs every check that applies to a trainer, on CPU, in seconds. It is imported on first use:
it needs torch, and toy tokenizers do not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from strop.lazy import on_first_use

if TYPE_CHECKING:
    from strop.testing.check import check_trainer as check_trainer

__all__, __getattr__, __dir__ = on_first_use(__name__, {"check": ("check_trainer",)})
