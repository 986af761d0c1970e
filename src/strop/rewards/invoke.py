"""Call a reward function, sync or async, and read its answer. The same code serves this process and the workers."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from strop.errors import ConfigError, DataError, SetupError
from strop.rewards.contract import Accepts, Failure, Outcome, RewardFunction, describe_exception, read_values
from strop.rewards.watchdog import TimeLimit, call_with_limit

_GRACE_SECONDS = 1.0
"""How much later than its coroutines the event loop itself is interrupted: only a blocking coroutine needs that."""


class Pushed:
    """Collects what a function pushes with `log_metric(name, value)` and `log_extra(name, values)`."""

    def __init__(self, n_rows: int) -> None:
        self.n_rows = n_rows
        self.metrics: list[tuple[str, float]] = []
        self.extras: dict[str, list[Any]] = {}

    def log_metric(self, name: str, value: float) -> None:
        """Record a number; the run logs the mean of all that were recorded under a name."""
        self.metrics.append((str(name), float(value)))

    def log_extra(self, name: str, values: Sequence[Any]) -> None:
        """Record a column of the completions table, one entry per row."""
        values = list(values)
        if len(values) != self.n_rows:
            raise ValueError(
                f"log_extra({str(name)!r}, ...) got {len(values)} values for {self.n_rows} completions; "
                "give one value per completion"
            )
        self.extras[str(name)] = values


def is_async(function: RewardFunction) -> bool:
    """Whether calling `function` gives a coroutine."""
    while isinstance(function, functools.partial):
        function = function.func
    call = getattr(function, "__call__", None)  # noqa: B004  (an instance is async when its __call__ is)
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


def run_function(function: RewardFunction, offered: Mapping[str, Any], n_rows: int) -> Outcome:
    """Call a function with what it accepts and read its answer; everything it raises becomes a `Failure`.

    `KeyboardInterrupt` and `TimeLimit` pass through: they belong to the user and to the watchdog.
    """
    pushed = Pushed(n_rows)
    try:
        returned = _call(function, offered, pushed)
        if inspect.isawaitable(returned):
            returned = asyncio.run(_wait_for(returned))
        return _finish(returned, pushed)
    except (KeyboardInterrupt, TimeLimit):
        raise
    except BaseException as error:
        return Outcome(failure=failure_of(error))


def run_together(
    calls: Sequence[tuple[RewardFunction, Mapping[str, Any], int]], seconds: float | None
) -> list[Outcome]:
    """Run async functions concurrently in one event loop, each with `seconds` of wall-clock time.

    Inside a running loop (a notebook) the new loop lives in a helper thread.
    """
    outcomes: dict[int, Outcome] = {}

    async def one(index: int) -> None:
        function, offered, n_rows = calls[index]
        outcomes[index] = await _run_coroutine(function, offered, n_rows, seconds)

    async def together() -> None:
        await asyncio.gather(*(one(index) for index in range(len(calls))))

    limit = None if seconds is None else seconds + _GRACE_SECONDS
    with contextlib.suppress(TimeLimit):
        call_with_limit(lambda: asyncio.run(together()), limit, in_thread=_loop_is_running())
    late = Outcome(failure=timeout_failure(seconds))
    return [outcomes.get(index, late) for index in range(len(calls))]


def timeout_failure(seconds: float | None, n_rows: int | None = None) -> Failure:
    """The failure of a call that did not come back in time."""
    what = "" if n_rows is None else f" for {n_rows} completion{'s' if n_rows != 1 else ''}"
    return Failure("timeout", f"it did not return within {seconds:g} seconds{what}")


def failure_of(error: BaseException) -> Failure:
    """What an exception means: a wrong set-up (which no policy may hide), or a failed call."""
    if isinstance(error, (ConfigError, DataError, SetupError)):
        return Failure("setup", str(error))
    return Failure("exception", f"it raised {describe_exception(error)}")


async def _run_coroutine(
    function: RewardFunction, offered: Mapping[str, Any], n_rows: int, seconds: float | None
) -> Outcome:
    pushed = Pushed(n_rows)
    try:
        task = asyncio.ensure_future(_wait_for(_call(function, offered, pushed)))
        await asyncio.wait({task}, timeout=seconds)
        if not task.done():
            task.cancel()
            return Outcome(failure=timeout_failure(seconds, n_rows))
        return _finish(task.result(), pushed)
    except TimeLimit:
        return Outcome(failure=timeout_failure(seconds, n_rows))
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return Outcome(failure=failure_of(error))


def _call(function: RewardFunction, offered: Mapping[str, Any], pushed: Pushed) -> Any:
    hooks: dict[str, Callable[..., None]] = {"log_metric": pushed.log_metric, "log_extra": pushed.log_extra}
    return Accepts.of(function).call(function, {**offered, **hooks})


def _finish(returned: Any, pushed: Pushed) -> Outcome:
    outcome = read_values(returned, pushed.n_rows)
    outcome.metrics, outcome.extras = pushed.metrics, pushed.extras
    return outcome


async def _wait_for(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def _loop_is_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
