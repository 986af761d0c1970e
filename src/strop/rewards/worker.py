"""A killable process for one reward function: started once, asked many times, replaced when it dies.

`os._exit`, a crash, an endless loop, `3 ** 3 ** 30` (which holds the interpreter's lock), a gigabyte of output, too
much memory: all of them end at the border of a process that can be killed, with everything it started, by its
process group. The parent never waits longer than the deadline it set.

The process is a bare interpreter started with `subprocess`, not with `multiprocessing`: a forked child inherits the
locks of torch's threads in whatever state they are in, and a spawned one imports the user's script again, so a
script without a `__main__` guard would start a second training run inside the worker.

What a process border does not stop: what the function does to files and to the network (model-written code belongs
into `code_execution.py`), and processes that it puts into a new session.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

from strop.rewards.contract import Failure, Outcome
from strop.rewards.frames import ClosedError, FrameTooLargeError, receive_frame, send_frame
from strop.rewards.invoke import timeout_failure
from strop.rewards.transfer import Parcel
from strop.rewards.worker_process import decode_outcome

STARTUP_SECONDS = 120.0
"""How long a worker may take to import what its function needs. It does not count towards the reward's timeout."""

REPLY_LIMIT_BYTES = 64 << 20
_LEAVE_SECONDS = 1.0


class NotMovable(Exception):
    """No worker could be made to hold the function; the text says why."""


class Worker:
    """One process that holds one reward function.

    Args:
        parcels: the function as bytes, in the ways that may work, best first (`transfer.parcels`).
        memory_limit_bytes: bound on the worker's address space (RLIMIT_AS). Note that importing torch alone reserves
            several gigabytes of address space.
        startup_seconds: bound on starting it.
    """

    def __init__(
        self,
        parcels: Iterable[Parcel],
        *,
        memory_limit_bytes: int | None = None,
        startup_seconds: float = STARTUP_SECONDS,
        reply_limit_bytes: int = REPLY_LIMIT_BYTES,
    ) -> None:
        self._parcels: Iterator[Parcel] = iter(parcels)
        self._parcel: Parcel | None = None
        self._setup = {"memory_limit_bytes": memory_limit_bytes, "reply_limit_bytes": reply_limit_bytes}
        self._startup_seconds = startup_seconds
        self._reply_limit_bytes = reply_limit_bytes
        self._alive: list[subprocess.Popen[bytes]] = []
        self._sock: socket.socket | None = None
        self._is_ready = False
        self._request_id = 0
        self._deadline: float | None = None
        self._asked: tuple[float | None, int] | None = None  # (seconds, rows) of the request under way
        self.starts = 0
        weakref.finalize(self, _kill_all, self._alive, os.getpid())

    @property
    def pid(self) -> int | None:
        """Process id of the running worker."""
        return self._alive[0].pid if self._alive else None

    def launch(self) -> None:
        """Start the process without waiting for it; nothing happens if it runs."""
        if self._alive and self._alive[0].poll() is None:
            return
        self.kill()
        if self._parcel is None:
            self._parcel = next(self._parcels, None)
        if self._parcel is None:
            raise NotMovable("it cannot be pickled, not even by value")
        ours, theirs = socket.socketpair()
        with theirs:
            process = _start_interpreter(theirs)
        self._alive.append(process)
        self._sock = ours
        self.starts += 1

    def wait_ready(self) -> None:
        """Start the process if needed, and wait until it holds the function.

        Raises:
            NotMovable: no way of sending the function led to a worker that could read it.
        """
        reasons: list[str] = []
        while True:
            try:
                self.launch()
            except NotMovable as error:
                raise NotMovable("; ".join(reasons) or str(error)) from None
            if self._is_ready:
                return
            reason = self._hand_over()
            if not reason:
                self._is_ready = True
                return
            reasons.append(f"a worker could not load it ({reason})")
            self.kill()
            self._parcel = None

    def ask(self, blobs: dict[str, bytes], n_rows: int, seconds: float | None) -> None:
        """Send a request; the answer is due `seconds` of wall-clock time from now (None: no limit)."""
        self.wait_ready()
        self._request_id += 1
        self._deadline = None if seconds is None else time.monotonic() + seconds
        self._asked = (seconds, n_rows)
        request = pickle.dumps({"id": self._request_id, "arguments": blobs, "n_rows": n_rows})
        with contextlib.suppress(OSError):  # a dead or deaf worker shows in `answer`
            send_frame(self._socket(), request, self._deadline)

    def answer(self) -> Outcome:
        """Wait for the answer to the last request; a worker that is late, dead or babbling is killed."""
        assert self._asked is not None
        seconds, n_rows = self._asked
        try:
            reply = self._receive_reply()
            outcome = decode_outcome(reply)
        except TimeoutError:
            self.kill()
            return Outcome(failure=timeout_failure(seconds, n_rows))
        except (ClosedError, OSError):
            return Outcome(failure=Failure("death", self._how_it_died()))
        except FrameTooLargeError as error:
            self.kill()
            return Outcome(failure=Failure("value", f"its answer is too large: {error}"))
        except Exception:
            self.kill()
            return Outcome(failure=Failure("death", "its worker process answered with something unreadable"))
        finally:
            self._asked = None
        _forward(reply)
        return outcome

    def kill(self) -> None:
        """End the process and everything in its process group, now."""
        self._is_ready = False
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        _kill_all(self._alive, os.getpid())

    def _socket(self) -> socket.socket:
        assert self._sock is not None
        return self._sock

    def _hand_over(self) -> str:
        """Send the function to a fresh process; why that failed, or nothing."""
        assert self._parcel is not None
        deadline = time.monotonic() + self._startup_seconds
        setup = {
            **self._setup,
            "encoding": self._parcel.encoding,
            "payload": self._parcel.payload,
            "parent_pid": os.getpid(),
        }
        try:
            send_frame(self._socket(), pickle.dumps(setup), deadline)
            return json.loads(receive_frame(self._socket(), deadline, self._reply_limit_bytes))["error"]
        except TimeoutError:
            return f"loading it takes more than {self._startup_seconds:g} seconds"
        except (ClosedError, OSError):
            return self._how_it_died()

    def _receive_reply(self) -> dict[str, Any]:
        while True:
            reply = json.loads(receive_frame(self._socket(), self._deadline, self._reply_limit_bytes))
            if reply["id"] == self._request_id:
                return reply

    def _how_it_died(self) -> str:
        process = self._alive[0] if self._alive else None
        code = None
        if process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(_LEAVE_SECONDS)
        self.kill()
        if code is None:
            return "its worker process closed the connection"
        if code >= 0:
            return f"it ended its process with exit code {code}"
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        hint = " (often the kernel, for lack of memory)" if name == "SIGKILL" else ""
        return f"its process was killed by {name}{hint}"


def workers_available() -> bool:
    """Whether this system can hand a socket to a child process (POSIX)."""
    return os.name == "posix"


def _start_interpreter(theirs: socket.socket) -> subprocess.Popen[bytes]:
    find = f"import sys; sys.path[:] = {sys.path!r}"
    code = f"{find}; from strop.rewards.worker_process import main; main({theirs.fileno()})"
    return subprocess.Popen(
        [sys.executable, "-c", code],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _forward(reply: dict[str, Any]) -> None:
    """Show what the function printed."""
    text, dropped = reply["printed"], reply["dropped_chars"]
    if dropped:
        text += f"\n[{dropped} more characters of output were dropped]\n"
    if text:
        print(text, end="", flush=True)


def _kill_all(alive: list[subprocess.Popen[bytes]], owner_pid: int) -> None:
    if os.getpid() != owner_pid:  # a forked copy of the training process must not end its parent's workers
        return
    while alive:
        process = alive.pop()
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10.0)
