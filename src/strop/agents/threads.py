"""Threads for others' code, which may hang: nothing can end a thread, so such a one is left behind, and counted."""

from __future__ import annotations

import concurrent.futures
import queue
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


class Hung(Exception):
    """A call was not answered in time."""


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


class OneThread:
    """A thread that answers calls in their order, until one hangs and is left behind with it."""

    def __init__(self, name: str) -> None:
        self.lost = False
        self._work: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._giving = threading.RLock()  # a finalizer may come in between, in this thread
        self.thread = threading.Thread(target=self._live, name=name, daemon=True)
        self.thread.start()

    def submit(self, work: Callable[[], Any]) -> concurrent.futures.Future[Any]:
        """Call `work` after what was given before; where the thread was left behind, the answer is an error at once."""
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        with self._giving:
            if self.lost:
                future.set_exception(RuntimeError("it was closed, or left behind when it did not answer"))
            else:
                self._work.put((work, future))
        return future

    def _live(self) -> None:
        while (item := self._work.get()) is not None:
            work, future = item
            try:
                future.set_result(work())
            except BaseException as error:  # SystemExit of an environment ends its call, not the run
                future.set_exception(error)

    def wait(self, answer: concurrent.futures.Future[Any], seconds: float | None) -> Any:
        """What a call returned or raised; `Hung` after so many seconds."""
        if not concurrent.futures.wait([answer], seconds).done:
            return Hung(f"no answer within {seconds:g} seconds" if seconds else "no answer in time")
        error = answer.exception()
        return error if error is not None else answer.result()

    def abandon(self) -> None:
        """Leave a hanging call alone. What is asked from now on is an error at once."""
        with self._giving:
            self.lost = True
            self._work.put(None)


class InTurn:
    """Calls one after the other in one thread, and in a new one behind a call that hangs.

    Args:
        name: of the threads.
        left_behind: takes those that are left.
    """

    def __init__(self, name: str, left_behind: LeftBehind) -> None:
        self.name, self.left_behind = name, left_behind
        self._thread: OneThread | None = None

    def call(self, work: Callable[[], T], seconds: float | None, late: T) -> T:
        """What `work`, which raises nothing, returns; `late` where that takes longer than `seconds`."""
        if self._thread is None:
            self._thread = OneThread(self.name)
            weakref.finalize(self, self._thread.abandon)
        result = self._thread.wait(self._thread.submit(work), seconds)
        if not isinstance(result, Hung):
            return result
        self._thread.abandon()
        self.left_behind.add(self._thread.thread)
        self._thread = None
        return late


def side_by_side(
    chains: Sequence[Sequence[Callable[[], T]]],
    at_once: int,
    seconds: float | None,
    late: T,
    left_behind: LeftBehind,
) -> list[list[T]]:
    """What the calls of several completions return, which are worked for side by side; those of one keep their order.

    Args:
        chains: the calls, by completion; they raise nothing.
        at_once: most completions that are worked for at a time, >= 1.
        seconds: time limit of each call; None: none.
        late: stands for what a call returns that does not end in time.
        left_behind: takes the threads of those.
    """
    found: list[list[T]] = [[] for _ in chains]
    waiting = iter(list(zip(chains, found, strict=True)))  # all workers take from it
    over = threading.Event()  # also by an interrupt: then no further call is begun

    def work() -> None:
        for chain, results in waiting:
            line = InTurn("strop-tool", left_behind)
            for call in chain:
                if over.is_set():
                    return
                results.append(line.call(call, seconds, late))

    workers = [OneThread("strop-completion") for _ in range(min(at_once, len(chains)))]
    try:
        for done in [worker.submit(work) for worker in workers]:
            done.result()
    finally:
        over.set()
        for worker in workers:
            worker.abandon()
    return found
