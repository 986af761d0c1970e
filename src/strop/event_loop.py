"""The event loops of this process: one in which every async reward runs, one for tools, one for calls over HTTP.

A semaphore, lock or client that is made once and used by every call belongs to the loop of its first use, so all
calls must share one. It lives in a thread of its own: it also serves where a loop is running already (a notebook), and
what a client does between two calls (keeping a connection alive) goes on.

A coroutine that blocks the loop instead of awaiting stops at its next Python instruction once its time is over; one
that blocks it in native code is a case for `rewards/watchdog.py`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import ctypes
import os
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from strop.time_limit import TimeLimit

_REFIRE_SECONDS = 0.5
_LEAVING_SECONDS = 1.0
REWARDS, TOOLS = "strop-reward-loop", "strop-tool-loop"


class EventLoop:
    """A running event loop and the thread that it lives in."""

    def __init__(self, name: str = REWARDS) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._live, name=name, daemon=True)
        self._thread.start()

    @property
    def is_here(self) -> bool:
        """Whether this is the loop's own thread, which must not wait for itself."""
        return threading.current_thread() is self._thread

    @property
    def is_alive(self) -> bool:
        """False in a forked copy of the process, where the thread does not exist."""
        return self._thread.is_alive()

    def start(self, awaitable: Awaitable[Any]) -> concurrent.futures.Future[Any]:
        """Begin with an awaitable."""
        return asyncio.run_coroutine_threadsafe(waiting_for(awaitable), self._loop)

    def run(self, awaitable: Awaitable[Any], seconds: float | None = None) -> Any:
        """`start` and `result`."""
        return self.result(self.start(awaitable), seconds)

    def result(self, future: concurrent.futures.Future[Any], seconds: float | None = None) -> Any:
        """The result of what was started, from any other thread.

        Args:
            future: of an awaitable that should end by itself within `seconds`.
            seconds: after that long, whatever blocks the loop is interrupted, again and again until it lets go.

        Raises:
            TimeLimit: the awaitable was the one that blocked. What it raises itself passes through.
        """
        try:
            while not concurrent.futures.wait([future], seconds).done:
                self._interrupt()
                seconds = _REFIRE_SECONDS
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """Stop the loop and its thread; what still runs in it is cancelled, and has a moment to leave."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _live(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._keep_on(self._loop.run_forever)
        if left := asyncio.all_tasks(self._loop):  # what was cancelled still has to give back what it holds
            for task in left:
                task.cancel()
            self._keep_on(lambda: self._loop.run_until_complete(asyncio.wait(left, timeout=_LEAVING_SECONDS)))

    def _keep_on(self, run: Callable[[], object]) -> None:
        while True:
            try:
                run()
                return
            except TimeLimit:  # it arrived between two coroutines
                continue

    def _interrupt(self) -> None:
        """Raise `TimeLimit` in the loop's thread, at its next Python instruction."""
        identity = ctypes.c_ulong(self._thread.ident or 0)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(identity, ctypes.py_object(TimeLimit))


_shared: dict[str, EventLoop] = {}
_lock = threading.Lock()


def _new_lock() -> None:
    """A forked copy must not wait for a thread that it does not have."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_lock)


def lasting_loop(name: str) -> EventLoop:
    """The loop of that name, for as long as the process lives."""
    with _lock:
        if name not in _shared or not _shared[name].is_alive:
            _shared[name] = EventLoop(name)
        return _shared[name]


@contextmanager
def shared_loop(name: str = REWARDS) -> Iterator[EventLoop]:
    """The loop of that name, which all calls share; who is inside of it gets one for itself while the block lasts."""
    shared = lasting_loop(name)
    if not shared.is_here:
        yield shared
        return
    nested = EventLoop()
    try:
        yield nested
    finally:
        nested.close()


def run_in_loop(awaitable: Awaitable[Any], seconds: float | None = None, *, name: str = REWARDS) -> Any:
    """`EventLoop.run` in the shared loop of that name."""
    with shared_loop(name) as loop:
        return loop.run(awaitable, seconds)


async def waiting_for(awaitable: Awaitable[Any]) -> Any:
    """An awaitable of any kind as a coroutine, which is what loops take."""
    return await awaitable
