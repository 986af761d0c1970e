"""The inside of an isolated reward's process: hold one function, answer requests. `isolation.py` is the outside."""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

from strop.rewards.contract import Failure, Outcome, describe_exception
from strop.rewards.invoke import run_function

ORPHAN_SECONDS = 10.0
_nowhere = os.open(os.devnull, os.O_WRONLY)


def serve(pipe: Connection, parent_pid: int, memory_limit_bytes: int | None, start_method: str) -> None:
    """Take a function, say why that failed or nothing, and answer requests until nobody asks any more.

    Args:
        pipe: to the training process.
        parent_pid: the training process.
        memory_limit_bytes: bound on the address space.
        start_method: how processes that the function starts begin; as in the training process.
    """
    os.setpgid(0, 0)  # a group of its own, so that its children die with it
    multiprocessing.set_start_method(start_method, force=True)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # the first to go when memory is short
    if memory_limit_bytes is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory_limit_bytes, memory_limit_bytes))
    threading.Thread(target=_end_with, args=(parent_pid,), daemon=True, name="strop-parent-watch").start()
    function = None
    try:
        function = load(pipe.recv_bytes())
        pipe.send_bytes(b"")
    except BaseException as error:
        pipe.send_bytes(describe_exception(error).encode("utf-8", "replace"))
    with contextlib.suppress(BrokenPipeError):
        for request in _requests(pipe):
            pipe.send_bytes(answer(function, *pickle.loads(request)))


def _requests(pipe: Connection) -> Iterator[bytes]:
    """What comes, until the training process is gone, be it in the middle of a request."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            yield pipe.recv_bytes()


def load(payload: bytes) -> Any:
    """Read the function, and import what it needs: that counts as starting, not as scoring."""
    function = pickle.loads(payload)
    for module in getattr(function, "requires", ()):
        importlib.import_module(module)
    code = function if hasattr(function, "__globals__") else type(function).__call__
    names = getattr(code, "__globals__", {})
    if names.get("__name__") == "__main__":  # so that functions of the script can go on to pools that it starts
        vars(sys.modules["__main__"]).update({n: v for n, v in names.items() if not n.startswith("__")})
    return function


def answer(function: Any, blobs: dict[str, bytes], n_rows: int, seconds: float | None) -> bytes:
    """Call the function with pickled arguments; its pickled `Outcome`.

    The other side holds the limit of `seconds`. Should it be gone, this process leaves by itself a little later, from
    native code too.
    """
    if seconds is not None:
        faulthandler.dump_traceback_later(seconds + ORPHAN_SECONDS, exit=True, file=_nowhere)
    asked = os.getpid()
    try:
        outcome = _answer(function, blobs, n_rows)
    finally:
        if os.getpid() != asked:  # a copy that the function forked came back from it: it must not answer as well
            os._exit(0)
        faulthandler.cancel_dump_traceback_later()
    try:
        return pickle.dumps(outcome)
    except Exception as error:
        wrong = f"its log_extra values cannot be sent back: {describe_exception(error)}"
        return pickle.dumps(Outcome(failure=Failure("value", wrong)))


def _answer(function: Any, blobs: dict[str, bytes], n_rows: int) -> Outcome:
    arguments = {}
    for name, blob in blobs.items():
        try:
            arguments[name] = pickle.loads(blob)
        except BaseException as error:
            text = f"the argument '{name}' cannot be read in its process: {describe_exception(error)}"
            return Outcome(failure=Failure("setup", text))
    try:
        return run_function(function, arguments, n_rows)
    except BaseException as error:  # KeyboardInterrupt raised by the function itself: nobody else can reach us
        return Outcome(failure=Failure("exception", f"it raised {describe_exception(error)}"))


def _end_with(parent_pid: int) -> None:
    """End when the training process is gone, also in the middle of a call."""
    while os.getppid() == parent_pid:
        time.sleep(1.0)
    os.killpg(0, signal.SIGKILL)
