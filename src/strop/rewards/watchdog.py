"""Tell a small process outside which reward runs, so that somebody can say so if this process no longer can.

    with watch_over("accuracy_reward", n_rows=64, seconds=300.0, directory=run, step=12): ...

A reward of this process may sit in native code, where no Python timer reaches, or end the process itself. Then the
process outside (`watchdog_process.py`) writes which reward it was and since when, and ends the run in the first case.
It starts with the first call, serves every `RewardSet` of this process, and costs one short write per call.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

GRACE_SECONDS = 15.0
"""How much later than its own limit a call is held to be beyond the timer's reach."""

_HARNESS = Path(__file__).with_name("watchdog_process.py")
_logger = logging.getLogger("strop.rewards")
_numbers = itertools.count()
_lock = threading.Lock()
_outside: subprocess.Popen[bytes] | None = None
_owner_pid: int | None = None


@contextlib.contextmanager
def watch_over(
    reward: str,
    n_rows: int,
    seconds: float | None,
    *,
    movable: bool = True,
    directory: str | None = None,
    step: int | None = None,
) -> Iterator[None]:
    """Have a call watched from outside.

    Args:
        reward: what the message calls it.
        n_rows: completions it is asked about.
        seconds: its own limit, wall-clock; None where only its death is of interest.
        movable: whether it could run in a process of its own.
        directory: the run's folder, where `alarms.jsonl` is.
        step: optimizer steps done.
    """
    number = next(_numbers)
    limit = None if seconds is None else seconds + GRACE_SECONDS
    given = {"reward": reward, "rows": n_rows, "seconds": seconds, "limit": limit, "movable": movable}
    _tell({"what": "begin", "id": number, **given, "directory": directory, "step": step})
    try:
        yield
    finally:
        _tell({"what": "end", "id": number})


def _tell(line: dict[str, Any]) -> None:
    global _outside, _owner_pid
    with _lock:
        if _owner_pid != os.getpid():  # the first call, or a forked copy of a process that had one
            _outside, _owner_pid = _start(), os.getpid()
        if _outside is None:
            return
        try:
            assert _outside.stdin is not None
            os.write(_outside.stdin.fileno(), json.dumps(line).encode("ascii") + b"\n")
        except OSError:
            _outside = None
            _logger.warning("the process that watches over rewards is gone; a reward that hangs may hang in silence")


def _start() -> subprocess.Popen[bytes] | None:
    if os.name != "posix":
        return None
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", str(_HARNESS), str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for the training process
    )
    atexit.register(_leave, os.getpid())
    return process


def _leave(owner_pid: int) -> None:
    if _outside is not None and os.getpid() == owner_pid == _owner_pid:
        _tell({"what": "leave"})
        with contextlib.suppress(subprocess.TimeoutExpired):
            _outside.wait(5.0)
