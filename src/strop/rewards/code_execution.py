"""Run Python that a model wrote, in a process that is fenced in, timed, and killed with everything it started.

    result = run_code("def add(a, b): return a + b", tests=["assert add(1, 2) == 3"])
    result.passed                                        # [True]

Each run is a fresh `python -I` in an empty temporary directory with its own process group, limits on CPU time,
address space, file size, open files and processes, and bounded output. Where the kernel permits unprivileged user
namespaces there is no network at all; elsewhere an audit hook refuses connections made from Python. The hook also
refuses to start programs, to signal other processes and to write outside of the directory.

What this does not do: it does not hide files that the user can read, and it is no wall against code that attacks the
interpreter (native extensions, `ctypes` on addresses). Tests run in the interpreter of the code they test, so code
written to deceive them can; input/output cases are compared outside and cannot be deceived that way. For hostile
code, run training in a container.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from strop.errors import ConfigError, SetupError

_HARNESS = Path(__file__).with_name("code_process.py")
_STARTUP_SECONDS = 60.0
_READ_BYTES = 65536
_REPORT_LIMIT_BYTES = 1 << 20


@dataclass(slots=True)
class Execution:
    """What a run did.

    `status` is "ok" (it ran to its end; single tests may have failed), "error" (the code raised, or left with a
    non-zero exit code), "timeout", "output" (more output than allowed) or "died" (killed by a limit or a crash).
    """

    status: str
    passed: list[bool]  # (n_tests,) tests that were not reached count as failed
    errors: list[str]  # (n_tests,) why each test failed, "" where it passed
    stdout: str
    stderr: str
    error: str = ""  # what went wrong outside of the tests
    seconds: float = 0.0  # wall-clock time from the start of the code
    fences: list[str] = field(default_factory=list)  # limits and namespaces that were in force


def run_code(
    code: str,
    *,
    tests: Sequence[str] = (),
    stdin: str = "",
    timeout_seconds: float = 5.0,
    memory_limit_bytes: int = 1 << 30,
    file_limit_bytes: int = 10 << 20,
    output_limit_bytes: int = 1 << 18,
) -> Execution:
    """Run code, and then each test in a copy of the code's names.

    Args:
        code: a Python module. With tests its `__name__` is "solution", without them it is "__main__".
        tests: snippets; one that raises has failed.
        stdin: what the code can read from standard input.
        timeout_seconds: wall-clock time for the code and all tests together.
        memory_limit_bytes: address space, which is more than what is used.
        file_limit_bytes: size of each file that it writes.
        output_limit_bytes: stdout and stderr each; a run that prints more is ended.

    Raises:
        ConfigError: a limit is not positive.
        SetupError: this system has no POSIX process groups and limits.
    """
    if os.name != "posix":
        raise SetupError("Running model-written code needs a POSIX system; use a container or WSL.")
    limits = {
        "timeout_seconds": timeout_seconds,
        "memory_limit_bytes": memory_limit_bytes,
        "file_limit_bytes": file_limit_bytes,
        "output_limit_bytes": output_limit_bytes,
    }
    wrong = [f"{name} is {value!r}; it must be positive" for name, value in limits.items() if not value > 0]
    if wrong:
        raise ConfigError.collect("The code sandbox cannot be set up.", wrong)
    nonce = secrets.token_hex(16)
    job = {
        "code": code,
        "tests": list(tests),
        "nonce": nonce,
        "seconds": math.ceil(timeout_seconds),
        "memory_bytes": memory_limit_bytes,
        "file_bytes": file_limit_bytes,
    }
    with tempfile.TemporaryDirectory(prefix="strop-code-", ignore_cleanup_errors=True) as directory:
        Path(directory, "job.json").write_text(json.dumps(job), encoding="ascii")
        run = _Run(directory, stdin, nonce, timeout_seconds, output_limit_bytes)
        return run.finish(len(tests))


class _Run:
    """One process under way: its pipes, what came out of them, and its deadline."""

    def __init__(self, directory: str, stdin: str, nonce: str, seconds: float, output_limit_bytes: int) -> None:
        self._nonce = nonce
        self._seconds = seconds
        self._output_limit_bytes = output_limit_bytes
        self._out = {"stdout": bytearray(), "stderr": bytearray(), "report": bytearray()}
        self._events: list[dict[str, Any]] = []
        self._started: float | None = None
        self._stopped_for = ""
        read_end, write_end = os.pipe()
        self._report = os.fdopen(read_end, "rb", buffering=0)
        with tempfile.TemporaryFile() as stdin_file:
            stdin_file.write(stdin.encode("utf-8", "surrogatepass"))
            stdin_file.seek(0)
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-B", "-u", str(_HARNESS), str(write_end)],
                    cwd=directory,
                    env=_environment(directory),
                    stdin=stdin_file,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    pass_fds=[write_end],
                    start_new_session=True,
                )
            finally:
                os.close(write_end)

    def finish(self, n_tests: int) -> Execution:
        launched = time.monotonic()
        try:
            self._watch(launched + _STARTUP_SECONDS)
        finally:
            self._kill()
            self._report.close()
        return self._result(n_tests, time.monotonic() - (self._started or launched))

    def _watch(self, startup_deadline: float) -> None:
        """Read the pipes until they close, the time is over, or there is too much output."""
        assert self._process.stdout is not None and self._process.stderr is not None
        pipes: dict[str, IO[bytes]] = {
            "stdout": self._process.stdout,
            "stderr": self._process.stderr,
            "report": self._report,
        }
        with selectors.DefaultSelector() as selector:
            for name, pipe in pipes.items():
                selector.register(pipe, selectors.EVENT_READ, name)
            while selector.get_map() and not self._stopped_for:
                deadline = startup_deadline if self._started is None else self._started + self._seconds
                left = deadline - time.monotonic()
                if left <= 0:
                    self._stopped_for = "timeout"
                    return
                for key, _ in selector.select(left):
                    data = os.read(key.fd, _READ_BYTES)
                    if not data:
                        selector.unregister(key.fileobj)
                    self._take(key.data, data)

    def _take(self, name: str, data: bytes) -> None:
        kept = self._out[name]
        kept += data
        if name == "report":
            *lines, rest = bytes(kept).split(b"\n")
            self._out[name] = bytearray(rest)
            for line in lines:
                self._read_report(line)
        limit = _REPORT_LIMIT_BYTES if name == "report" else self._output_limit_bytes
        if len(self._out[name]) > limit or len(self._events) > limit:
            self._stopped_for = "output"

    def _read_report(self, line: bytes) -> None:
        with contextlib.suppress(ValueError, AttributeError):
            event = json.loads(line)
            if event.get("nonce") == self._nonce:
                self._events.append(event)
                if event["event"] == "started":
                    self._started = time.monotonic()

    def _kill(self) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            if not self._stopped_for:
                self._process.wait(1.0)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()

    def _result(self, n_tests: int, seconds: float) -> Execution:
        by_kind: dict[str, dict[str, Any]] = {event["event"]: event for event in self._events}
        passed, errors = [False] * n_tests, ["not reached"] * n_tests
        for event in self._events:
            if event["event"] == "test" and 0 <= event["index"] < n_tests:
                passed[event["index"]] = event["ok"]
                errors[event["index"]] = event.get("error", "")
        status, error = self._status(by_kind)
        return Execution(
            status=status,
            passed=passed,
            errors=errors,
            stdout=self._text("stdout"),
            stderr=self._text("stderr"),
            error=error,
            seconds=seconds,
            fences=by_kind.get("started", {}).get("fences", []),
        )

    def _status(self, by_kind: dict[str, dict[str, Any]]) -> tuple[str, str]:
        code = self._process.returncode
        if self._stopped_for == "timeout":
            return "timeout", f"it did not end within {self._seconds:g} seconds"
        if self._stopped_for == "output":
            return "output", f"it printed more than {self._output_limit_bytes} bytes"
        if "failed" in by_kind:
            return "error", by_kind["failed"]["error"]
        if code < 0:
            return "died", f"killed by signal {-code}"
        if code > 0 or "loaded" not in by_kind:
            return "error", f"it ended its process with exit code {code}"
        return "ok", ""

    def _text(self, name: str) -> str:
        return bytes(self._out[name][: self._output_limit_bytes]).decode("utf-8", "replace")


def _environment(directory: str) -> dict[str, str]:
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {
        "PATH": os.defpath,
        "HOME": directory,
        "TMPDIR": directory,
        "LANG": "C.UTF-8",
        **one_thread,
    }
