"""A killable process for one reward function: `reward_isolation=True`.

The function travels by cloudpickle. What a call does to its process (an endless loop in native code, `os._exit`, a
crash, too much memory) ends there, with every process that it started and left in its group, and the next call gets a
new one. The price: the function is a copy. What the script changes afterwards (globals, environment variables) it does
not see, and what it changes the script does not see.

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
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any

import cloudpickle

from strop.errors import SetupError
from strop.fresh_process import FreshContext
from strop.rewards.contract import Failure, Outcome, describe_exception
from strop.rewards.invoke import late
from strop.rewards.worker import serve

STARTUP_SECONDS = 120.0
"""How long a worker may take to import what its function needs. It does not count towards the reward's timeout."""

_DYING_SECONDS = 1.0
"""How long a process whose pipe broke may take until the system tells how it ended."""


class Worker:
    """One process that holds one reward function: started on first use, replaced when it is killed or dies.

    Args:
        function: the callable; cloudpickle must be able to write it.
        name: of the reward, for errors.
        memory_limit_bytes: bound on the worker's address space (RLIMIT_AS). Importing torch alone reserves several
            gigabytes of address space.

    Raises:
        SetupError: the function cannot be pickled; later, that it or an argument cannot be read on the other side.
    """

    def __init__(self, function: Any, name: str, *, memory_limit_bytes: int | None = None) -> None:
        self._name = name
        if os.name != "posix":
            raise cannot_move(name, "killable processes need a POSIX system")
        self._payload = self._pickled("it", function)
        self._memory_limit_bytes = memory_limit_bytes
        self._process: BaseProcess | None = None
        self._owner = os.getpid()
        self._end: Callable[[], Any] = lambda: None
        self._ready = False
        self._asked: tuple[float, float | None, int] | None = None  # when the answer is due, the limit for it, rows
        self.starts = 0

    @property
    def pid(self) -> int | None:
        """The process's id, while there is one."""
        return None if self._process is None else self._process.pid

    def launch(self) -> None:
        """Start the process without waiting for it; nothing happens if it runs."""
        here = self._owner == os.getpid()  # and not in a forked copy of the training process, which gets its own
        if self._process is not None and here and self._process.is_alive():
            return
        self.kill()
        context = FreshContext()
        self._pipe, theirs = context.Pipe()
        settings = os.getpid(), self._memory_limit_bytes, multiprocessing.get_start_method()
        self._process = context.Process(target=serve, args=(theirs, *settings))
        self._process.start()
        self._owner = os.getpid()
        theirs.close()
        self._end = Finalize(self, _end, (self._process,), exitpriority=10)  # before multiprocessing waits for it
        self._send(self._payload)
        self.starts += 1

    def wait_ready(self) -> None:
        """Start the process if needed, and wait until it holds the function."""
        self.launch()
        if self._ready:
            return
        try:
            received = self._received(STARTUP_SECONDS)
            wrong = f"loading it takes more than {STARTUP_SECONDS:g} seconds" if received is None else received.decode()
        except (EOFError, OSError):
            wrong = self._how_it_died()
        if wrong:
            self.kill()
            raise cannot_move(self._name, f"a worker could not load it ({wrong})")
        self._ready = True

    def ask(self, arguments: dict[str, Any], n_rows: int, seconds: float | None) -> None:
        """Send a request; the answer is due `seconds` after it (None: no limit)."""
        self.forget()  # a request that was interrupted: its answer would be taken for that of this one
        self.wait_ready()
        blobs = {name: self._pickled(f"the argument '{name}'", value) for name, value in arguments.items()}
        request = pickle.dumps((blobs, n_rows, seconds))
        self._asked = time.monotonic() + (math.inf if seconds is None else seconds), seconds, n_rows
        self._send(request)

    def answer(self) -> Outcome:
        """Wait for the answer to the last request; a worker that is late or dead is replaced at the next one."""
        assert self._asked is not None
        due, seconds, n_rows = self._asked
        try:
            received = self._received(None if seconds is None else max(due - time.monotonic(), 0.0))
            if received is not None:
                self._asked = None
                return pickle.loads(received)
            outcome = late(seconds, n_rows)
        except (EOFError, OSError):
            outcome = Outcome(failure=Failure("death", self._how_it_died()))
        self.kill()
        return outcome

    def forget(self) -> None:
        """End the process if it was asked and the answer was not taken: it may be anywhere in it."""
        if self._asked is not None:
            self.kill()

    def kill(self) -> None:
        """End the process and everything in its process group, now."""
        self._end()
        self._process, self._ready, self._asked = None, False, None

    def _send(self, message: bytes) -> None:
        """From a thread, since a process that does not read must not hold this one; how it ends, the answer tells."""

        def send(pipe: Connection) -> None:
            with contextlib.suppress(OSError):
                pipe.send_bytes(message)

        threading.Thread(target=send, args=(self._pipe,), name="strop-reward-send", daemon=True).start()

    def _received(self, seconds: float | None) -> bytes | None:
        """What the process sends; None where it sends nothing in time.

        Raises:
            EOFError, OSError: it is gone.
        """
        assert self._process is not None
        if not wait([self._pipe, self._process.sentinel], seconds):
            return None
        if not self._pipe.poll():  # what it started may hold the other end
            raise EOFError
        return self._pipe.recv_bytes()

    def _how_it_died(self) -> str:
        assert self._process is not None
        self._process.join(_DYING_SECONDS)
        code = self._process.exitcode
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

    def _pickled(self, what: str, value: Any) -> bytes:
        try:
            return cloudpickle.dumps(value)
        except Exception as error:
            raise cannot_move(self._name, f"{what} cannot be pickled: {describe_exception(error)}") from None


def cannot_move(reward: str, reason: str) -> SetupError:
    """The error of a reward that cannot be isolated."""
    return SetupError(
        f"Reward '{reward}' cannot run in a process of its own: {reason}. Let it hold only what can be pickled, "
        "or leave reward_isolation off."
    )


def _end(process: BaseProcess) -> None:
    assert process.pid is not None
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()  # it may not have had its group yet
    process.join()
