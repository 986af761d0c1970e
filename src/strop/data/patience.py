"""A limit on the time of code that may never end: a chat template is a program of its author."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class TooSlow(Exception):
    """Raised in the thread whose code has used up its time."""


@contextmanager
def ends_within(seconds: float) -> Iterator[None]:
    """Raise `TooSlow` in the code of the `with` block if it runs longer, in any thread; it must be Python code."""
    thread, lock, done = threading.get_ident(), threading.Lock(), False

    def stop() -> None:
        with lock:
            if not done:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(TooSlow))

    timer = threading.Timer(seconds, stop)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        with lock:
            done = True
        timer.cancel()
