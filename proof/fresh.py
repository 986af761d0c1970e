"""pytest in a process that has imported torch and transformers, and nothing of strop.

Importing those takes longer than most tests, so processes are forked from a server that has done it once. What a test
found is told by its reports, not by the exit code alone: a bug that breaks an import has proved nothing.
"""

from __future__ import annotations

import contextlib
import gc
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PRELOADED = (
    "pytest",
    "hypothesis",
    "torch",
    "torch.utils.checkpoint",
    "datasets",
    "peft",
    "transformers.trainer",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
    "transformers.models.gpt2.modeling_gpt2",
)
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
NOT_A_BUG = frozenset({"ImportError", "ModuleNotFoundError", "SyntaxError", "IndentationError", "NameError"})
"""Errors of a mutation that was written wrongly."""
_context: Any = None


@dataclass
class Outcome:
    """What a session of pytest found."""

    code: int | None  # pytest's exit code; None: it was ended for taking too long
    failed: list[dict[str, str]] = field(default_factory=list)  # test, phase, error, message
    seconds: float = 0.0
    output: str = ""

    @property
    def passed(self) -> bool:
        return self.code == 0

    @property
    def caught(self) -> dict[str, str] | None:
        """The first test that failed by what it asserts; None if none did."""
        honest = [f for f in self.failed if f["phase"] == "call" and f["error"] not in NOT_A_BUG]
        return honest[0] if self.code == 1 and honest else None

    @property
    def complaint(self) -> str:
        """Why the session is neither green nor a catch."""
        if self.code is None:
            return "ended for taking too long"
        if self.failed:
            first = self.failed[0]
            return f"{first['test']} ({first['phase']}): {first['error']}: {first['message']}"
        last = [line for line in self.output.splitlines() if line.strip()][-3:]
        return f"pytest ended with exit code {self.code}: {' / '.join(last)}"


def run_tests(copy: Path, tests: Sequence[str], *, seconds: float) -> Outcome:
    """Run some tests on a copy of the project (its `src/` and `tests/`), stopping at the first failure."""
    report, printed = copy / "report.json", copy / "printed.txt"
    report.unlink(missing_ok=True)
    begin = time.monotonic()
    process = _server().Process(target=_session, args=(str(copy), list(tests), str(report), str(printed)))
    process.start()
    process.join(seconds)
    late = process.is_alive()
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)  # the session leads a group of its own
    process.join()
    output = printed.read_text(encoding="utf-8", errors="replace") if printed.is_file() else ""
    spent = time.monotonic() - begin
    if late or not report.is_file():
        return Outcome(None if late else process.exitcode, seconds=spent, output=output)
    return Outcome(**json.loads(report.read_text()), seconds=spent, output=output)


class _Reports:
    """A pytest plugin that keeps what failed, in which phase, and by which error."""

    def __init__(self) -> None:
        self.failed: list[dict[str, str]] = []

    def pytest_runtest_makereport(self, item: Any, call: Any) -> None:
        if call.excinfo is None or call.excinfo.typename in ("Skipped", "XFailed"):
            return
        message = next((line for line in str(call.excinfo.value).splitlines() if line.strip()), "")
        self.failed.append(
            {"test": item.nodeid, "phase": call.when, "error": call.excinfo.typename, "message": message[:300]}
        )


def _session(copy: str, tests: list[str], report: str, printed: str) -> None:
    """What the process does: pytest on the copy, whose strop is the only one it can find."""
    os.setsid()
    descriptor = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.chdir(copy)
    os.environ["PYTHONPATH"] = f"{copy}/src{os.pathsep}{copy}"
    sys.path[:] = [f"{copy}/src", copy, *(p for p in sys.path if not (Path(p or ".") / "strop").is_dir())]
    import pytest

    gc.freeze()  # what the server imported is no garbage
    reports = _Reports()
    options = ["-x", "-q", "--tb=short", "-p", "no:cacheprovider", f"--basetemp={copy}/scratch"]
    code = int(pytest.main([*options, *tests], plugins=[reports]))
    if "strop" in sys.modules and not str(sys.modules["strop"].__file__).startswith(copy):
        code = 70
    Path(report).write_text(json.dumps({"code": code, "failed": reports.failed}))
    sys.stdout.flush()
    os._exit(0)


def _server() -> Any:
    """The context whose server has imported `PRELOADED`; started on first use."""
    global _context
    if _context is None:
        os.environ.update(ENVIRONMENT)
        _context = multiprocessing.get_context("forkserver")
        _context.set_forkserver_preload(list(PRELOADED))
    return _context
