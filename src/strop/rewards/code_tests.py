"""Rewards for code: take the program out of a completion, run it against the row's tests."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from strop.errors import ConfigError, DataError
from strop.rewards.code_execution import Execution, run_code
from strop.rewards.sandbox.places import choose
from strop.rewards.sandbox.protocol import Sandbox
from strop.rewards.texts import completion_text

_BLOCK = re.compile(r"^[^\S\n]*```([^\n]*)\n(.*?)(?:^[^\S\n]*```[^\n]*$|\Z)", re.MULTILINE | re.DOTALL)
"""A fenced block, or an unclosed one: its language and its text."""
_LANGUAGES = ("", "python", "python3", "py")


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
        run = functools.partial(
            run_code,
            sandbox=choose(self.sandbox, self.allow_unsafe_code),
            timeout_seconds=self.timeout_seconds,
            memory_limit_bytes=self.memory_limit_bytes,
        )
        programs = [extract_code(completion_text(completion)) for completion in completions]
        read = [read_tests(given, entry) for given, entry in zip(tests, entry_points, strict=True)]
        with ThreadPoolExecutor(self.max_workers) as pool:
            results = list(pool.map(functools.partial(self._judge, run), programs, read, entry_points))
        if log_extra is not None:
            log_extra("code_status", [status for _, status in results])
        return [reward for reward, _ in results]

    def _judge(
        self, run: Callable[..., Execution], program: str, tests: CodeTests | None, entry_point: str | None
    ) -> tuple[float | None, str]:
        """(reward, status) of one program."""
        if tests is None:
            return None, "no tests"
        if not program.strip():
            return 0.0, "no code"
        if tests.snippets:
            done = run(program, tests=tests.snippets, entry_point=entry_point)
            # A run that did not come to its own end has not passed, whatever it reported on the way.
            passed = done.passed if done.status == "ok" or self.partial else [False]
            status = done.status
        else:
            passed, status = self._run_cases(run, program, tests.cases)
        share = sum(passed) / len(passed)
        return (share if self.partial else float(share == 1.0)), status

    def _run_cases(
        self, run: Callable[..., Execution], program: str, cases: Sequence[tuple[str, str]]
    ) -> tuple[list[bool], str]:
        passed: list[bool] = []
        status = "ok"
        for stdin, expected in cases:
            done = run(program, stdin=stdin)
            status = done.status if done.status != "ok" else status
            passed.append(done.status == "ok" and _lines(done.stdout) == _lines(expected))
            if not passed[-1] and not self.partial:
                break
        return passed, status


get_code_reward = CodeReward


def extract_code(text: str) -> str:
    """The last fenced Python block of a text (or what follows an unclosed fence); the whole text without fences."""
    blocks = [code for language, code in _BLOCK.findall(text) if language.strip().lower() in _LANGUAGES]
    if blocks:
        return blocks[-1].rstrip("\n")
    return "" if "```" in text else text.rpartition("</think>")[2]


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
