"""What a place that runs programs must offer, and what a run may use there."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

PROCESSES = 64


@dataclass(frozen=True, slots=True)
class Limits:
    """What one program may use."""

    seconds: float  # wall clock
    memory_bytes: int  # address space of each process, and resident memory of all of them together
    file_bytes: int  # each file; and all of its temporary folder behind a wall
    output_bytes: int  # stdout and stderr, each


class Sandbox(Protocol):
    """A place that starts Python and kills it. It is given to `run_code` and `get_code_reward` as `sandbox`.

    Standard input, output and error of the process are all that is needed of it, so a container or a machine far away
    can be one. The tests of a program run in a second process of the same place. Docker:

        class Docker:
            name = "docker"
            fences = ("a container without network",)
            missing = ()
            strict = True      # an unset resource limit is an error

            def start(self, arguments, limits):
                container = f"code-{secrets.token_hex(8)}"
                process = subprocess.Popen(
                    ["docker", "run", "--rm", "-i", "--name", container, "--network=none", "--read-only",
                     "--tmpfs=/tmp", "--workdir=/tmp", "--user=64000:64000", "--cap-drop=ALL", "--pids-limit=64",
                     f"--memory={limits.memory_bytes}", "--security-opt=no-new-privileges",
                     "python:3.12-slim", "python3", *arguments],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
                process.container = container
                return process

            def stop(self, process):
                subprocess.run(["docker", "kill", process.container], capture_output=True)
                process.wait()

            def too_much(self, process, limits):
                return ""      # --memory does it
    """

    name: str
    fences: tuple[str, ...]  # what holds, in words
    missing: tuple[str, ...]  # what does not
    strict: bool  # a resource limit that cannot be set is an error

    def start(self, arguments: list[str], limits: Limits) -> subprocess.Popen[bytes]:
        """Start Python with these arguments, its three standard streams on unbuffered pipes."""
        ...

    def stop(self, process: subprocess.Popen[bytes]) -> None:
        """Kill it with everything that it started, wait until all are gone, remove its folder."""
        ...

    def too_much(self, process: subprocess.Popen[bytes], limits: Limits) -> str:
        """Why the process and those it started are to be killed, as "memory ..."; asked every 50 ms; "" to go on."""
        ...


def start_apart(
    command: Sequence[str], folder: str, environment: Mapping[str, str], pass_fds: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """Start a command in a session of its own, its three standard streams on unbuffered pipes."""
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command,
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        bufsize=0,
        cwd=folder,
        env=environment,
        pass_fds=pass_fds,
        start_new_session=True,
    )


def environment_in(folder: str, path: str = os.defpath) -> dict[str, str]:
    """The environment variables of a program, whose home is this folder."""
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {"PATH": path, "HOME": folder, "TMPDIR": folder, "LANG": "C.UTF-8", **one_thread}
