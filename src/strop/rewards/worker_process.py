"""The inside of a worker: hold one reward function, answer requests until the other side is gone.

Started by `worker.py` as a bare interpreter that imports nothing but this module, so it is ready in well under a
tenth of a second; what the function itself imports comes on top. Requests arrive pickled, because columns may hold
anything. Answers leave as JSON: a function that runs model-written text can then make its worker say wrong numbers,
but never make the training process execute something.

The file descriptors 0, 1 and 2 lead to the null device, so a flood of output costs nothing and can block nothing.
What Python code prints is kept up to a limit and sent along with the answer, so that debugging prints still show.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import pickle
import socket
import sys
import threading
import time
from typing import Any

from strop.rewards.contract import Failure, Outcome, describe_exception
from strop.rewards.frames import ClosedError, receive_frame, send_frame
from strop.rewards.invoke import run_function

PRINT_LIMIT_CHARS = 64 * 1024


class Printed(io.TextIOBase):
    """Standard output with an end: keeps the first characters, counts the others."""

    def __init__(self, limit_chars: int = PRINT_LIMIT_CHARS) -> None:
        self.limit_chars = limit_chars
        self._parts: list[str] = []
        self._kept = 0
        self._dropped = 0

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        kept = text[: self.limit_chars - self._kept]
        self._parts += [kept] if kept else []
        self._kept += len(kept)
        self._dropped += len(text) - len(kept)
        return len(text)

    def take(self) -> tuple[str, int]:
        """What was kept since the last call, and how many characters were not."""
        taken = "".join(self._parts), self._dropped
        self._parts, self._kept, self._dropped = [], 0, 0
        return taken


def main(descriptor: int) -> None:
    """Serve one function over the socket with this descriptor, then leave without running exit handlers."""
    sock = socket.socket(fileno=descriptor)
    printed = Printed()
    sys.stdout = sys.stderr = printed
    with contextlib.suppress(ClosedError, OSError):
        _serve(sock, printed)
    os._exit(0)


def _serve(sock: socket.socket, printed: Printed) -> None:
    setup = pickle.loads(receive_frame(sock))
    _die_with(setup["parent_pid"])
    try:
        _limit_memory(setup["memory_limit_bytes"])
        function = importlib.import_module(setup["encoding"]).loads(setup["payload"])
        for module in getattr(function, "requires", ()):  # importing them counts as starting, not as scoring
            importlib.import_module(module)
    except BaseException as error:
        send_frame(sock, _json({"ready": False, "error": describe_exception(error)}))
        return
    send_frame(sock, _json({"ready": True, "error": ""}))
    while True:
        request = pickle.loads(receive_frame(sock))
        outcome = _answer(function, request["arguments"], request["n_rows"])
        text, dropped = printed.take()
        reply = {"id": request["id"], "printed": text, "dropped_chars": dropped, **encode_outcome(outcome)}
        send_frame(sock, _bounded(reply, setup["reply_limit_bytes"]))


def _answer(function: Any, blobs: dict[str, bytes], n_rows: int) -> Outcome:
    arguments = {}
    for name, blob in blobs.items():
        try:
            arguments[name] = pickle.loads(blob)
        except BaseException as error:
            text = f"the argument '{name}' cannot be read there: {describe_exception(error)}"
            return Outcome(failure=Failure("transfer", text))
    try:
        return run_function(function, arguments, n_rows)
    except BaseException as error:  # KeyboardInterrupt raised by the function itself: nobody else can reach us
        return Outcome(failure=Failure("exception", f"it raised {describe_exception(error)}"))


def encode_outcome(outcome: Outcome) -> dict[str, Any]:
    """An outcome as plain data for JSON."""
    return {
        "values": outcome.values,
        "failed": {str(row): [failure.kind, failure.text] for row, failure in outcome.failed.items()},
        "failure": None if outcome.failure is None else [outcome.failure.kind, outcome.failure.text],
        "metrics": outcome.metrics,
        "extras": outcome.extras,
    }


def decode_outcome(reply: dict[str, Any]) -> Outcome:
    """The reverse of `encode_outcome`."""
    return Outcome(
        values=reply["values"],
        failed={int(row): Failure(*pair) for row, pair in reply["failed"].items()},
        failure=None if reply["failure"] is None else Failure(*reply["failure"]),
        metrics=[(name, value) for name, value in reply["metrics"]],
        extras=reply["extras"],
    )


def _bounded(reply: dict[str, Any], limit_bytes: int) -> bytes:
    try:
        encoded = _json(reply)
    except (TypeError, ValueError, RecursionError) as error:
        encoded, wrong = b"", f"its log_extra or log_metric values cannot be sent back: {describe_exception(error)}"
    else:
        wrong = f"its answer takes {len(encoded)} bytes, more than the {limit_bytes} that are allowed"
    if encoded and len(encoded) <= limit_bytes:
        return encoded
    failed = Outcome(failure=Failure("value", f"{wrong}; log less with log_extra"))
    return _json({"id": reply["id"], "printed": "", "dropped_chars": 0, **encode_outcome(failed)})


def _json(reply: dict[str, Any]) -> bytes:
    return json.dumps(reply, default=_plain).encode("ascii")


def _plain(value: Any) -> Any:
    """What JSON does not know: arrays become lists, numpy numbers become numbers, everything else its text."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, (set, frozenset)):
        return list(value)
    return str(value)[:1000]


def _limit_memory(limit_bytes: int | None) -> None:
    """Bound the address space, and let the kernel take this process first when the machine runs out of memory."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
    if limit_bytes is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))


def _die_with(parent_pid: int) -> None:
    """End when the training process ends, even in the middle of an endless loop (Linux) or of a wait (elsewhere)."""
    with contextlib.suppress(Exception):
        import ctypes

        ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG, SIGKILL

    def watch() -> None:
        while os.getppid() == parent_pid:
            time.sleep(1.0)
        os._exit(0)

    threading.Thread(target=watch, daemon=True, name="strop-parent-watch").start()
