"""What there is where no wall can be built: resource limits, an audit hook, a process group, a folder that is removed.

This keeps accidents in. It does not hide a file, it does not stop a program that calls the kernel past the interpreter
(`ctypes`, a native module), and what puts itself into a new session is not killed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile

from strop.rewards.sandbox import tree
from strop.rewards.sandbox.protocol import Limits, environment_in, start_apart


class Fences:
    """See the module's text; a `Sandbox`."""

    name = "fences"
    strict = False
    fences: tuple[str, ...] = ("an audit hook", "a process group of its own", "no environment")
    missing: tuple[str, ...] = (
        "files of this user can be read",
        "the network is there for native code",
        "processes can be started and signalled by native code",
        "what starts a session of its own outlives the run",
        "memory and processes are limited one by one, not together",
    )

    def __init__(self) -> None:
        self._folders: dict[int, str] = {}

    def start(self, arguments: list[str], limits: Limits) -> subprocess.Popen[bytes]:
        folder = tempfile.mkdtemp(prefix="strop-code-")
        try:
            process = start_apart([sys.executable, *arguments], folder, environment_in(folder))
        except BaseException:
            _remove(folder)
            raise
        self._folders[process.pid] = folder
        return process

    def stop(self, process: subprocess.Popen[bytes]) -> None:
        below = [] if process.poll() is not None else tree.descendants(process.pid)
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        for pid in below[1:]:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        _remove(self._folders.pop(process.pid))

    def too_much(self, process: subprocess.Popen[bytes], limits: Limits) -> str:
        held = tree.memory_bytes(tree.descendants(process.pid))
        return f"its processes held {held} bytes of memory" if held > limits.memory_bytes else ""


def _remove(folder: str) -> None:
    """Remove a folder that a program filled: as deep as it likes, and with permissions of its choice."""
    with contextlib.suppress(OSError, RecursionError):
        shutil.rmtree(folder)
        return
    subprocess.run(["chmod", "-R", "u+rwx", "--", folder], capture_output=True, check=False)
    subprocess.run(["rm", "-rf", "--", folder], capture_output=True, check=False)
