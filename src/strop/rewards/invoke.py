"""Call a reward function and read its answer. The same code serves this process and the workers."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from strop.errors import ConfigError, DataError, SetupError
from strop.rewards.contract import Accepts, Failure, Outcome, RewardFunction, describe_exception, read_values
from strop.rewards.event_loop import run_in_loop
from strop.rewards.time_limit import TimeLimit


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

    What is awaitable is awaited in the shared event loop. `KeyboardInterrupt` and `TimeLimit` pass through: they
    belong to the user and to the timer.
    """
    pushed = Pushed(n_rows)
    try:
        returned = call_with_hooks(function, offered, pushed)
        if inspect.isawaitable(returned):
            returned = run_in_loop(returned)
        return outcome_of(returned, pushed)
    except (KeyboardInterrupt, TimeLimit):
        raise
    except BaseException as error:
        return Outcome(failure=failure_of(error))


def call_with_hooks(function: RewardFunction, offered: Mapping[str, Any], pushed: Pushed) -> Any:
    """Call with what the signature names, the log hooks included."""
    hooks: dict[str, Callable[..., None]] = {"log_metric": pushed.log_metric, "log_extra": pushed.log_extra}
    return Accepts.of(function).call(function, {**offered, **hooks})


def outcome_of(returned: Any, pushed: Pushed) -> Outcome:
    """The outcome of a call that returned."""
    outcome = read_values(returned, pushed.n_rows)
    outcome.metrics, outcome.extras = pushed.metrics, pushed.extras
    return outcome


def timeout_failure(seconds: float | None, n_rows: int | None = None) -> Failure:
    """The failure of a call that did not come back in time."""
    what = "" if n_rows is None else f" for {n_rows} completion{'s' if n_rows != 1 else ''}"
    return Failure("timeout", f"it did not return within {seconds:.3g} seconds{what}")


def failure_of(error: BaseException) -> Failure:
    """What an exception means: a wrong set-up (which no policy may hide), or a failed call."""
    if isinstance(error, (ConfigError, DataError, SetupError)):
        return Failure("setup", str(error))
    return Failure("exception", f"it raised {describe_exception(error)}")
