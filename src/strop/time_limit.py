"""A time limit on Python code in the main thread: one timer that raises, and is put back as it was.

SIGALRM interrupts Python code, sleeps and blocking reads, and fires again every half second until a bare `except`
lets go. It cannot interrupt:

* code in another thread, or on a system without `signal.setitimer` (Windows): there the work just runs;
* native code that does not come back to the interpreter (`3 ** 3 ** 30`), and a function that sets an alarm of its own.

The process outside (`rewards/watchdog.py`) ends a run that is held by one of these.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")

_REFIRE_SECONDS = 0.5


class TimeLimit(BaseException):
    """The limit has passed. Not an `Exception`, so that `except Exception` in user code does not swallow it."""


def alarm_in_use() -> bool:
    """Whether an alarm is set right now; code that sets alarms itself must not, then."""
    return hasattr(signal, "setitimer") and signal.getitimer(signal.ITIMER_REAL)[0] > 0


def can_interrupt() -> bool:
    """Whether `call_with_limit` can hold its limit here: in the main thread of a POSIX system."""
    return threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer")


def call_with_limit(work: Callable[[], T], seconds: float | None) -> T:
    """Call `work()` and give it `seconds` of wall-clock time, where that can be held; None means no limit.

    Raises:
        TimeLimit: the time is over. What `work` raises itself passes through.
    """
    if seconds is None or not can_interrupt():
        return work()
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
    started = time.monotonic()
    old_handler = signal.signal(signal.SIGALRM, handler)
    old_left, old_interval = signal.setitimer(signal.ITIMER_REAL, seconds, _REFIRE_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old_handler)
        if old_left:
            left = max(old_left - (time.monotonic() - started), 1e-3)
            signal.setitimer(signal.ITIMER_REAL, left, old_interval)
