"""An engine for as long as somebody waits for what it samples."""

from __future__ import annotations

import threading
from typing import Any

from strop.errors import RolloutError
from strop.records import Rollout


class WantedEngine:
    """As the engine, until `ended` is set: then it samples no more, and who converses through it stops.

    A conversation that goes on beside a run that has ended would otherwise write into the sampling of the next one.

    Args:
        engine: a rollout engine.
        ended: set when the run has.
    """

    def __init__(self, engine: Any, ended: threading.Event) -> None:
        self.engine, self.ended = engine, ended

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def check(self) -> None:
        """Raise `RolloutError` where nobody waits any more."""
        if self.ended.is_set():
            raise RolloutError("The run that asked for these completions has ended.")

    def generate(self, *given: Any, **options: Any) -> Rollout:
        """As the engine's. Raises `RolloutError` where nobody waits any more."""
        self.check()
        rollout: Rollout = self.engine.generate(*given, **options)
        return rollout
