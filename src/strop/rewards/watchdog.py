"""A time limit on a call inside this process.

What it can stop, and what it cannot:

* in the main thread, SIGALRM interrupts Python code, sleeps and blocking reads, and fires again every half second
  until a `bare except` lets go. A function that sets its own alarm replaces ours;
* in any other thread, and inside a running event loop, the call goes to a helper thread. Past the limit an
  exception is set in that thread, which stops Python code at its next instruction; a blocking C call lives on until
  it returns, but the caller does not wait for it;
* nothing inside a process can stop C code that holds the interpreter's lock (`3 ** 3 ** 30`), nor `os._exit`, nor a
  crash. For those the function has to live in a worker process (`worker.py`).
"""

from __future__ import annotations

import contextlib
import ctypes
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")

_REFIRE_SECONDS = 0.5
_depth = 0


class TimeLimit(BaseException):
    """The limit has passed. Not an `Exception`, so that `except Exception` in user code does not swallow it."""


def alarm_in_use() -> bool:
    """Whether a call is being timed with SIGALRM right now; code that sets alarms itself must not, then."""
    return _depth > 0


def call_with_limit(work: Callable[[], T], seconds: float | None, *, in_thread: bool = False) -> T:
    """Call `work()` and give it `seconds` of wall-clock time; None means no limit.

    Raises:
        TimeLimit: the time is over. What `work` raises itself passes through.
    """
    if seconds is None and not in_thread:
        return work()
    if in_thread or threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        return _in_thread(work, seconds)
    assert seconds is not None
    return _with_alarm(work, seconds)


def _with_alarm(work: Callable[[], T], seconds: float) -> T:
    armed = True

    def fire(signum: int, frame: object) -> None:
        if armed:
            raise TimeLimit

    with _alarm(fire, seconds):
        try:
            try:
                return work()
            finally:
                armed = False
        except TimeLimit:
            armed = False
            raise


@contextlib.contextmanager
def _alarm(handler: Callable[[int, object], None], seconds: float) -> Iterator[None]:
    """Install a SIGALRM handler; an alarm that was already running goes on afterwards with the time it has left."""
    global _depth
    started = time.monotonic()
    old_handler = signal.signal(signal.SIGALRM, handler)
    old_left, old_interval = signal.setitimer(signal.ITIMER_REAL, seconds, _REFIRE_SECONDS)
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old_handler)
        if old_left:
            left = max(old_left - (time.monotonic() - started), 1e-3)
            signal.setitimer(signal.ITIMER_REAL, left, old_interval)


def _in_thread(work: Callable[[], T], seconds: float | None) -> T:
    results: list[T] = []
    errors: list[BaseException] = []

    def target() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=target, name="strop-reward", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        # Every live thread has an id by now; the exception arrives at its next Python instruction.
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(TimeLimit))
        raise TimeLimit
    if errors:
        raise errors[0]
    return results[0]
