"""Rewards for code: take the program out of a completion, run it against the row's tests."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from strop.errors import ConfigError, DataError
from strop.rewards.code_execution import run_code
from strop.rewards.sandbox.places import choose
from strop.rewards.sandbox.protocol import Sandbox
from strop.rewards.texts import completion_text

_FENCE = "```"
_LANGUAGES = frozenset({"", "python", "python3", "py"})


@dataclass(frozen=True, slots=True)
class CodeTests:
    """Tests in one of two kinds: snippets that raise when the code is wrong, or programs' inputs with their outputs."""

    snippets: tuple[str, ...] = ()
    cases: tuple[tuple[str, str], ...] = ()  # (stdin, expected stdout)


def code_reward(
    completions: Sequence[Any],
    tests: Sequence[Any],
    entry_point: Sequence[str | None] | None = None,
    log_extra: Callable[..., None] | None = None,
    **kwargs: Any,
) -> list[float | None]:
    """1.0 where the completion's program passes all tests of the row's `tests` column, else 0.0.

    See `get_code_reward` for the forms of tests, for partial credit and for other limits.
    """
    return get_code_reward()(completions, tests, entry_point, log_extra)


class CodeReward:
    """A reward that runs the program in a completion against tests, behind a wall (see `run_code`).

    The program is the last fenced Python block of the completion (an unclosed one counts), or the whole completion
    if it has none. The `tests` column holds, for each row, in a table or as a JSON string:

    * a string, or a list of strings: Python snippets that raise (`assert f(2) == 4`) when the code is wrong. With
      the column `entry_point`, `check(entry_point)` is called where a snippet defines `check` (HumanEval);
    * a list of {"input": ..., "output": ...}, or {"inputs": [...], "outputs": [...]}: text for standard input and
      the expected standard output, compared line by line without trailing blanks;
    * None or nothing: the reward abstains.

    Args:
        partial: the share of tests that pass, instead of all or nothing.
        timeout_seconds: wall-clock time for one program (snippets: with all tests; cases: each).
        memory_limit_bytes: memory of one program with all that it starts.
        max_workers: programs that run at the same time; default: processors, at most 8.
        sandbox: where programs run; default: behind bubblewrap. See `strop.rewards.sandbox.protocol.Sandbox`.
        allow_unsafe_code: where no wall can be built, run with the fences there are instead of raising `SetupError`.
    """

    reward_name = "code_reward"

    def __init__(
        self,
        *,
        partial: bool = False,
        timeout_seconds: float = 5.0,
        memory_limit_bytes: int = 1 << 30,
        max_workers: int | None = None,
        sandbox: Sandbox | None = None,
        allow_unsafe_code: bool = False,
    ) -> None:
        if max_workers is not None and max_workers < 1:
            raise ConfigError(f"max_workers is {max_workers!r}; it must be at least 1.")
        self.partial = partial
        self.timeout_seconds = timeout_seconds
        self.memory_limit_bytes = memory_limit_bytes
        self.sandbox = sandbox
        self.allow_unsafe_code = allow_unsafe_code
        self.max_workers = max_workers or min(os.cpu_count() or 1, 8)

    def __call__(
        self,
        completions: Sequence[Any],
        tests: Sequence[Any],
        entry_point: Sequence[str | None] | None = None,
        log_extra: Callable[..., None] | None = None,
        **kwargs: Any,
    ) -> list[float | None]:
        entry_points = entry_point if entry_point is not None else [None] * len(completions)
        sandbox = choose(self.sandbox, self.allow_unsafe_code)
        programs = [extract_code(completion_text(completion)) for completion in completions]
        read = [read_tests(given, entry) for given, entry in zip(tests, entry_points, strict=True)]
        with ThreadPoolExecutor(self.max_workers) as pool:
            results = list(pool.map(self._judge, programs, read, entry_points, [sandbox] * len(programs)))
        if log_extra is not None:
            log_extra("code_status", [status for _, status in results])
        return [reward for reward, _ in results]

    def _judge(
        self, program: str, tests: CodeTests | None, entry_point: str | None, sandbox: Sandbox
    ) -> tuple[float | None, str]:
        """(reward, status) of one program."""
        if tests is None:
            return None, "no tests"
        if not program.strip():
            return 0.0, "no code"
        if tests.snippets:
            passed, status = self._run_snippets(program, tests, entry_point, sandbox)
        else:
            passed, status = self._run_cases(program, tests, sandbox)
        share = sum(passed) / len(passed)
        return (share if self.partial else float(share == 1.0)), status

    def _run_snippets(
        self, program: str, tests: CodeTests, entry_point: str | None, sandbox: Sandbox
    ) -> tuple[list[bool], str]:
        done = run_code(
            program,
            tests=tests.snippets,
            entry_point=entry_point,
            sandbox=sandbox,
            timeout_seconds=self.timeout_seconds,
            memory_limit_bytes=self.memory_limit_bytes,
        )
        # A run that did not come to its own end has not passed, whatever it reported on the way.
        if done.status == "ok" or self.partial:
            return done.passed, done.status
        return [False] * len(done.passed), done.status

    def _run_cases(self, program: str, tests: CodeTests, sandbox: Sandbox) -> tuple[list[bool], str]:
        passed: list[bool] = []
        status = "ok"
        for stdin, expected in tests.cases:
            done = run_code(
                program,
                stdin=stdin,
                sandbox=sandbox,
                timeout_seconds=self.timeout_seconds,
                memory_limit_bytes=self.memory_limit_bytes,
            )
            status = done.status if done.status != "ok" else status
            passed.append(done.status == "ok" and _lines(done.stdout) == _lines(expected))
            if not passed[-1] and not self.partial:
                break
        return passed, status


get_code_reward = CodeReward


def extract_code(text: str) -> str:
    """The last fenced Python block of a text (or what follows an unclosed fence); the whole text without fences."""
    blocks: list[str] = []
    inside: list[str] | None = None
    for line in text.splitlines():
        mark = line.strip()
        if not mark.startswith(_FENCE):
            if inside is not None:
                inside.append(line)
        elif inside is None:
            inside = []
            language = mark[len(_FENCE) :].strip().lower()
            wanted = language in _LANGUAGES
        else:
            if wanted:
                blocks.append("\n".join(inside))
            inside = None
    if inside is not None and wanted:
        blocks.append("\n".join(inside))
    if blocks:
        return blocks[-1]
    return "" if _FENCE in text else text.rpartition("</think>")[2]


def read_tests(given: Any, entry_point: str | None = None) -> CodeTests | None:
    """Read one entry of the `tests` column; None where there are no tests.

    Raises:
        DataError: the entry has none of the known forms.
    """
    if isinstance(given, str) and given.lstrip()[:1] in ("[", "{"):
        with contextlib.suppress(ValueError):  # Python may begin with a bracket too
            given = json.loads(given)
    if isinstance(given, str):
        given = [given] if given.strip() else []
    if isinstance(given, Mapping):
        given = _as_cases(given)
    if not given:
        return None
    given = list(given)
    if all(isinstance(test, str) for test in given):
        return CodeTests(snippets=tuple(_with_check(test, entry_point) for test in given))
    if all(isinstance(test, Mapping) and {"input", "output"} <= set(test) for test in given):
        return CodeTests(cases=tuple((_joined(test["input"]), _joined(test["output"])) for test in given))
    raise DataError(
        "An entry of the column 'tests' must be Python snippets (a string or a list of strings), a list of "
        f"{{'input', 'output'}}, or {{'inputs', 'outputs'}}; got {str(given)[:200]}"
    )


def _as_cases(given: Mapping[str, Any]) -> list[Any]:
    inputs, outputs = given.get("inputs"), given.get("outputs")
    if inputs is None or outputs is None or len(inputs) != len(outputs):
        return [given]
    return [{"input": one, "output": other} for one, other in zip(inputs, outputs, strict=True)]


def _joined(value: Any) -> str:
    return "\n".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _with_check(snippet: str, entry_point: str | None) -> str:
    return f"{snippet}\n\ncheck({entry_point})\n" if entry_point and "def check(" in snippet else snippet


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]
