"""Call a reward function and read its answer. The same code serves this process and the workers."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from strop.errors import ConfigError, DataError, SetupError
from strop.event_loop import run_in_loop
from strop.rewards.contract import Accepts, Failure, Outcome, RewardFunction, describe_exception, read_values
from strop.time_limit import TimeLimit


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

    def call(self, function: RewardFunction, offered: Mapping[str, Any]) -> Any:
        """Call a function with what its signature names, the log hooks included."""
        hooks: dict[str, Callable[..., None]] = {"log_metric": self.log_metric, "log_extra": self.log_extra}
        return Accepts.of(function).call(function, {**offered, **hooks})

    def outcome(self, returned: Any) -> Outcome:
        """The outcome of a call that returned."""
        outcome = read_values(returned, self.n_rows)
        outcome.metrics, outcome.extras = self.metrics, self.extras
        return outcome


def is_async(function: RewardFunction) -> bool:
    """Whether calling `function` gives a coroutine."""
    while isinstance(function, functools.partial):
        function = function.func
    call = getattr(function, "__call__", None)  # noqa: B004  (an instance is async when its __call__ is)
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


def run_function(function: RewardFunction, offered: Mapping[str, Any], n_rows: int) -> Outcome:
    """Call a function with what it accepts and read its answer; everything it raises becomes a `Failure`.

    What is awaitable is awaited in the shared event loop. `KeyboardInterrupt` and `TimeLimit` pass through: they
    belong to the user and to the timer.
    """
    pushed = Pushed(n_rows)
    try:
        returned = pushed.call(function, offered)
        if inspect.isawaitable(returned):
            returned = run_in_loop(returned)
        return pushed.outcome(returned)
    except (KeyboardInterrupt, TimeLimit):
        raise
    except BaseException as error:
        return raised(error)


async def await_function(
    function: RewardFunction, offered: Mapping[str, Any], n_rows: int, seconds: float | None
) -> Outcome:
    """`run_function` for an async function, which is left alone after so many seconds."""
    pushed = Pushed(n_rows)
    task: asyncio.Future[Any] | None = None
    try:
        task = asyncio.ensure_future(pushed.call(function, offered))
        await asyncio.wait({task}, timeout=seconds)
        return pushed.outcome(task.result()) if task.done() else late(seconds, n_rows)
    except TimeLimit:
        return late(seconds, n_rows)
    except (KeyboardInterrupt, asyncio.CancelledError):
        raise
    except BaseException as error:
        return raised(error)
    finally:
        if task is not None:
            task.cancel()


def late(seconds: float | None, n_rows: int) -> Outcome:
    """The outcome of a call that did not come back in time."""
    rows = f"{n_rows} completion{'s' if n_rows != 1 else ''}"
    return Outcome(failure=Failure("timeout", f"it did not return within {seconds:.3g} seconds for {rows}"))


def raised(error: BaseException) -> Outcome:
    """What an exception means: a wrong set-up (which no policy may hide), or a failed call."""
    if isinstance(error, (ConfigError, DataError, SetupError)):
        return Outcome(failure=Failure("setup", str(error)))
    return Outcome(failure=Failure("exception", f"it raised {describe_exception(error)}"))
