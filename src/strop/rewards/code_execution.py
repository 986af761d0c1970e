"""Run Python that a model wrote, behind a wall, timed, and killed with everything it started.

    result = run_code("def add(a, b): return a + b", tests=["assert add(1, 2) == 3"])
    result.passed                                        # [True]

Each run is a fresh `python -I` behind bubblewrap (`strop.rewards.sandbox`): own user, pid, net, ipc and mount
namespaces, nothing visible but `/usr` and the interpreter, an empty private `/tmp`, no environment, no network, no
capability; limits on time, memory, processes, files and output are kept from outside. Where no wall can be built
nothing is run, unless `allow_unsafe_code=True` says so.

Tests run in a second process and call the program through a pipe, so what they expect is never where the program is,
and the verdict is made where it cannot be reached. See `strop.rewards.sandbox.remote` for what tests can do with the
program's own objects.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from strop.errors import ConfigError, SetupError
from strop.rewards.sandbox.places import choose
from strop.rewards.sandbox.protocol import Limits, Sandbox
from strop.rewards.sandbox.running import Member, Session

_STARTS = 3  # a machine under load may fail to start a process once


@dataclass(slots=True)
class Execution:
    """What a run did.

    `status` is "ok" (it ran to its end; single tests may have failed), "error" (the code raised, or left with a
    non-zero exit code), "timeout", "output" (more output than allowed) or "died" (killed by a limit or a crash).
    """

    status: str
    passed: list[bool]  # (n_tests,) tests that were not reached count as failed
    errors: list[str]  # (n_tests,) why each test failed, "" where it passed
    stdout: str  # with tests it is empty: what the program prints then is in stderr
    stderr: str
    error: str = ""  # what went wrong outside of the tests
    seconds: float = 0.0  # wall-clock time from the start of the code
    fences: list[str] = field(default_factory=list)  # limits and namespaces that were in force
    missing: list[str] = field(default_factory=list)  # what a wall would have given and was not there


def run_code(
    code: str,
    *,
    tests: Sequence[str] = (),
    stdin: str = "",
    timeout_seconds: float = 5.0,
    memory_limit_bytes: int = 1 << 30,
    file_limit_bytes: int = 10 << 20,
    output_limit_bytes: int = 1 << 18,
    entry_point: str | None = None,
    sandbox: Sandbox | None = None,
    allow_unsafe_code: bool = False,
) -> Execution:
    """Run code, and then each test against what it defined.

    Args:
        code: a Python module. With tests its `__name__` is "solution", without them it is "__main__".
        tests: snippets; one that raises has failed. They see the code's names.
        stdin: what the code can read from standard input.
        timeout_seconds: wall-clock time for the code and all tests together.
        memory_limit_bytes: address space of each process, and resident memory of all of them together.
        file_limit_bytes: size of each file that it writes, and of all of its folder behind a wall.
        output_limit_bytes: stdout and stderr each; a run that prints more is ended.
        entry_point: a name that tests take from the code even if Python or a library has one like it.
        sandbox: where to run; default: bubblewrap. See `strop.rewards.sandbox.protocol.Sandbox`.
        allow_unsafe_code: where no wall can be built, run with the fences there are.

    Raises:
        ConfigError: a limit is not positive.
        SetupError: no wall can be built here, or the sandbox does not start.
    """
    limits = {
        "timeout_seconds": timeout_seconds,
        "memory_limit_bytes": memory_limit_bytes,
        "file_limit_bytes": file_limit_bytes,
        "output_limit_bytes": output_limit_bytes,
    }
    wrong = [f"{name} is {value!r}; it must be positive" for name, value in limits.items() if not value > 0]
    if wrong:
        raise ConfigError.collect("The code sandbox cannot be set up.", wrong)
    place = choose(sandbox, allow_unsafe_code)
    bounds = Limits(timeout_seconds, memory_limit_bytes, file_limit_bytes, output_limit_bytes)
    jobs: dict[str, dict[str, Any]] = {"run": {"code": code, "input": stdin.encode("utf-8", "surrogatepass")}}
    if tests:
        jobs = {
            "serve": {"code": code, "stdin": stdin},
            "judge": {"tests": list(tests), "entry_point": entry_point},
        }
    for attempt in range(_STARTS):
        session = Session(place, bounds)
        try:
            members = session.run(jobs)
            break
        except (SetupError, OSError) as error:  # the program was not sent yet
            if session.started is not None or attempt == _STARTS - 1:
                raise SetupError(f"The code sandbox ({place.name}) does not start: {error}") from error
    done = _with_tests(session, members, len(tests)) if tests else _alone(session, members["run"])
    done.seconds = time.monotonic() - (session.started or time.monotonic())
    done.fences = [*place.fences, *next(iter(members.values())).fences]
    done.missing = list(place.missing)
    return done


def _with_tests(session: Session, members: dict[str, Member], n_tests: int) -> Execution:
    """The verdicts are those of the tests' process; what the program says of itself is not asked."""
    passed, errors = [False] * n_tests, ["not reached"] * n_tests
    happened: dict[Any, dict[str, Any]] = {}
    for event in session.events:
        index = event.get("index")
        if event.get("event") == "test" and type(index) is int and 0 <= index < n_tests:
            passed[index] = event.get("ok") is True
            errors[index] = "" if passed[index] else str(event.get("error"))[:1000]
        elif type(event.get("event")) is str:
            happened[event["event"]] = event
    status, error = session.status, session.why
    if status == "ok" and "failed" in happened:
        status, error = "error", str(happened["failed"].get("error"))[:1000]
    code = _exit_code(members["serve"])
    if status != "timeout" and code > 128 and "judged" not in happened:
        status, error = "died", session.why or f"killed by signal {code - 128}"
    elif status == "ok" and "judged" not in happened:
        status, error = "error", f"it ended its process with exit code {code}"
    elif status == "ok" and code != 0:
        status, error = "error", f"it ended with exit code {code}"
    return Execution(status, passed, errors, "", _text(session, members["serve"].err), error)


def _alone(session: Session, member: Member) -> Execution:
    status, error = session.status, session.why
    code = _exit_code(member)
    stderr = _text(session, member.err)
    if status == "ok" and code > 128:
        status, error = "died", f"killed by signal {code - 128}"
    elif status == "ok" and code != 0:
        last = stderr.strip().splitlines()[-1:]
        status, error = "error", ": ".join([f"exit code {code}", *last])[:1000]
    return Execution(status, [], [], _text(session, member.out), stderr, error)


def _exit_code(member: Member) -> int:
    """As a shell counts: 128 and the signal for a process that was killed."""
    code = member.process.returncode
    return 128 - code if code < 0 else code


def _text(session: Session, data: bytearray) -> str:
    return bytes(data[: session.limits.output_bytes]).decode("utf-8", "replace")
