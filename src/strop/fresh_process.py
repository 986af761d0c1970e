"""Fresh interpreters that do not import the user's script: one without a `__main__` guard would train again."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any

_main_lock = threading.Lock()


class FreshProcess(SpawnProcess):
    """A spawned process that knows nothing of the script."""

    def start(self) -> None:
        with _script_hidden():
            super().start()


class FreshContext(SpawnContext):
    """Makes such processes, and what they talk through."""

    Process = FreshProcess


@contextlib.contextmanager
def _script_hidden() -> Iterator[None]:
    """`multiprocessing` looks at the file and the spec of `__main__` to tell a child what to import first."""
    script: dict[str, Any] = vars(sys.modules["__main__"])
    with _main_lock:
        kept: dict[str, Any] = {name: script[name] for name in ("__file__", "__spec__") if name in script}
        script.pop("__file__", None)
        script["__spec__"] = None
        try:
            yield
        finally:
            script.update(kept)
