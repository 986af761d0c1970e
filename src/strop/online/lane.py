"""A thread that does what it is given, one after the other."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future, wait
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
Job = tuple[Future[Any], Callable[[], Any]]


class Lane:
    """Calls in their order, in one thread, which is a daemon: what hangs in it does not hold the end of a run."""

    def __init__(self, name: str) -> None:
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        threading.Thread(target=_work, args=(self._jobs,), name=name, daemon=True).start()
        weakref.finalize(self, self._jobs.put, None)

    def __call__(self, work: Callable[[], T], future: Future[T] | None = None) -> Future[T]:
        """Call `work` after everything that was given before; `future` has its result, or what it raised."""
        future = Future() if future is None else future
        self._jobs.put((future, work))
        return future

    def is_free(self, seconds: float) -> bool:
        """Whether all that was given is done, or will be within so many seconds."""
        return bool(wait([self(lambda: None)], seconds).done)

    def clear(self) -> None:
        with contextlib.suppress(Empty):
            while (job := self._jobs.get_nowait()) is not None:
                job[0].cancel()


def _work(jobs: SimpleQueue[Job | None]) -> None:
    while (job := jobs.get()) is not None:
        future, work = job
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(work())
            except BaseException as error:  # raised again where the result is asked for
                future.set_exception(error)
        del job, future, work  # groups are large, and the next job may be long in coming


def after(first: Future[Any], work: Callable[[], T]) -> Future[T]:
    """What `work` returns or raises, called as soon as `first` is done, in the thread that has done it."""
    found: Future[T] = Future()

    def settle(done: Future[Any]) -> None:
        if done.cancelled():
            found.cancel()
            return
        try:
            found.set_result(work())
        except BaseException as error:  # raised again where the result is asked for
            found.set_exception(error)

    first.add_done_callback(settle)
    return found
