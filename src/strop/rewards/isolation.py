"""A killable process for one reward function: `reward_isolation=True`.

The pool and the restarts are pebble's. The time limit is not: pebble reads the clock on the wall, which may be set
during a call. The function travels by cloudpickle. What a call does to its
process (an endless loop in native code, `os._exit`, a crash, too much memory) ends there, with every process that it
started and left in its group, and the next call gets a new one. The price: the function is a copy. What the script
changes afterwards (globals, environment variables) it does not see, and what it changes the script does not see.

A process border does not stop what the function does to files and to the network, and the two sides trust each other
(answers are pickled): programs that a model wrote belong into `code_execution.py`.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import pickle
import signal
import time
import weakref
from concurrent.futures import Future, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from typing import Any

import cloudpickle
from pebble import ProcessExpired, ProcessPool

from strop.fresh_process import FreshContext
from strop.rewards.contract import Failure, Outcome, describe_exception
from strop.rewards.invoke import timeout_failure
from strop.rewards.worker import answer, load, prepare

STARTUP_SECONDS = 120.0
"""How long a worker may take to import what its function needs. It does not count towards the reward's timeout."""

_LOOK_SECONDS = 0.5


class NotMovable(Exception):
    """No worker could be made to hold the function, or read an argument; the text says why."""


class Worker:
    """One process that holds one reward function: started on first use, replaced when it is killed or dies.

    Args:
        function: the callable; cloudpickle must be able to write it.
        memory_limit_bytes: bound on the worker's address space (RLIMIT_AS). Importing torch alone reserves several
            gigabytes of address space.
        startup_seconds: bound on starting it.
    """

    def __init__(
        self, function: Any, *, memory_limit_bytes: int | None = None, startup_seconds: float = STARTUP_SECONDS
    ) -> None:
        if os.name != "posix":
            raise NotMovable("killable processes need a POSIX system")
        try:
            self._payload = cloudpickle.dumps(function)
        except Exception as error:
            raise NotMovable(f"it cannot be pickled: {describe_exception(error)}") from None
        self._memory_limit_bytes = memory_limit_bytes
        self._startup_seconds = startup_seconds
        self._pools: list[ProcessPool] = []  # at most one
        self._loading: Future[Any] | None = None
        self._asked: tuple[Future[Any], float | None, int] | None = None  # the answer, its limit in seconds, rows
        self._deadline = math.inf
        self.pid: int | None = None
        self._process: BaseProcess | None = None  # that holds the function
        self.starts = 0
        weakref.finalize(self, _stop, self._pools, os.getpid())

    def launch(self) -> None:
        """Start the process without waiting for it; nothing happens if it runs."""
        if self._pools and not self._pools[0].active:
            self.kill()
        if not self._pools:
            settings = os.getpid(), self._memory_limit_bytes, multiprocessing.get_start_method()
            pool = ProcessPool(1, initializer=prepare, initargs=settings, context=FreshContext())
            self._pools.append(pool)
            self._loading = pool.schedule(load, args=(self._payload,))
            self.starts += 1

    def wait_ready(self) -> None:
        """Start the process if needed, and wait until it holds the function.

        Raises:
            NotMovable: the worker could not read the function.
        """
        self.launch()
        if self._loading is None:
            return
        try:
            self.pid, wrong = self._loading.result(self._startup_seconds)
        except TimeoutError:
            wrong = f"loading it takes more than {self._startup_seconds:g} seconds"
        except (ProcessExpired, BrokenProcessPool) as error:
            wrong = _how_it_died(error)
        if wrong:
            self.kill()
            raise NotMovable(f"a worker could not load it ({wrong})")
        self._process = next((child for child in multiprocessing.active_children() if child.pid == self.pid), None)
        self._loading = None

    def ask(self, arguments: dict[str, Any], n_rows: int, seconds: float | None) -> None:
        """Send a request; the answer is due `seconds` after it (None: no limit).

        Raises:
            NotMovable: an argument cannot be pickled; its name is in the text.
        """
        self.wait_ready()
        blobs = {name: _pickled(name, value) for name, value in arguments.items()}
        self._asked = self._pools[0].schedule(answer, args=(blobs, n_rows, seconds)), seconds, n_rows
        self._deadline = time.monotonic() + (math.inf if seconds is None else seconds)

    def answer(self) -> Outcome:
        """Wait for the answer to the last request; a worker that is late or dead is replaced at the next one."""
        assert self._asked is not None
        future, seconds, n_rows = self._asked
        try:
            self._wait(future)
            return pickle.loads(future.result(0))
        except TimeoutError:
            failure = timeout_failure(seconds, n_rows)
        except (ProcessExpired, BrokenProcessPool) as error:
            failure = Failure("death", _how_it_died(error, self._exit_code()))
        finally:
            self._asked = None
        self.kill()
        return Outcome(failure=failure)

    def _wait(self, future: Future[Any]) -> None:
        """Until an answer is there, or its time is over; pebble passes over a worker that leaves with exit code 0."""
        while not wait([future], max(0.0, min(_LOOK_SECONDS, self._deadline - time.monotonic()))).done:
            if time.monotonic() >= self._deadline:
                return
            if not _is_alive(self.pid) and not wait([future], _LOOK_SECONDS).done:
                raise ProcessExpired("left", code=self._exit_code() or 0)

    def _exit_code(self) -> int | None:
        """How the process ended; pebble may see that its pipe broke before it sees that."""
        if self._process is None:
            return None
        self._process.join(_LOOK_SECONDS)
        return self._process.exitcode

    def kill(self) -> None:
        """End the process and everything in its process group, now."""
        _stop(self._pools, os.getpid())
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        self.pid, self._process, self._loading = None, None, None


def _pickled(name: str, value: Any) -> bytes:
    try:
        return cloudpickle.dumps(value)
    except Exception as error:
        raise NotMovable(f"the argument '{name}' cannot be pickled: {describe_exception(error)}") from None


def _is_alive(pid: int | None) -> bool:
    try:
        os.kill(pid or os.getpid(), 0)
    except ProcessLookupError:
        return False
    return True


def _how_it_died(error: BaseException, code: int | None = None) -> str:
    code = error.exitcode if isinstance(error, ProcessExpired) else code
    if code is None:
        return "its worker process died"
    if code >= 0:
        return f"it ended its process with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = " (often the kernel, for lack of memory)" if name == "SIGKILL" else ""
    return f"its process was killed by {name}{hint}"


def _stop(pools: list[ProcessPool], owner_pid: int) -> None:
    while pools and os.getpid() == owner_pid:  # a forked copy of the training process must not end its parent's workers
        pool = pools.pop()
        pool.stop()
        pool.join()
