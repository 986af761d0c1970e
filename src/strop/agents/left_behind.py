"""Threads that did not end in time: nothing can end a thread, so they are left behind, and counted."""

from __future__ import annotations

import threading


class LeftBehind:
    """Of tools, environments and agents, the threads that are still at what nobody waits for."""

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []

    def add(self, thread: threading.Thread) -> None:
        self._threads.append(thread)

    @property
    def running(self) -> int:
        """How many are still there; those that have come to an end since are forgotten."""
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        return len(self._threads)
