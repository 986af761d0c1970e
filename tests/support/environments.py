"""Environments that options act on. A process of its own imports them with this file, which needs no torch."""

from __future__ import annotations

import multiprocessing
import time
from typing import Any


class Endless:
    """An environment that never ends by itself."""

    def reset(self, **row: Any) -> str:
        return "start"

    def step(self, text: str) -> tuple[str, bool]:
        return "go on", False


class Slow(Endless):
    """Thinks for a moment."""

    def step(self, text: str) -> tuple[str, bool]:
        time.sleep(0.2)
        return "go on", True


class Homesick(Endless):
    """Says whether it lives in the run's own process."""

    def reset(self, **row: Any) -> str:
        return "home" if multiprocessing.parent_process() is None else "away"
