"""Async reward functions: several at once in one event loop, each with its own time limit."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

from strop.rewards.contract import Outcome, RewardFunction
from strop.rewards.invoke import Pushed, call_with_hooks, failure_of, outcome_of, timeout_failure
from strop.rewards.watchdog import TimeLimit, call_with_limit

_GRACE_SECONDS = 1.0
"""How much later than its coroutines the event loop itself is interrupted: only a blocking coroutine needs that."""

AsyncCall = tuple[RewardFunction, Mapping[str, Any], int]
"""A function, what it is offered, and the number of rows."""


def run_together(calls: Sequence[AsyncCall], seconds: float | None) -> list[Outcome]:
    """Run async functions concurrently in one event loop, each with `seconds` of wall-clock time.

    Inside a running loop (a notebook) the new loop lives in a helper thread.
    """
    outcomes: dict[int, Outcome] = {}

    async def one(index: int) -> None:
        outcomes[index] = await _run_coroutine(*calls[index], seconds)

    async def together() -> None:
        await asyncio.gather(*(one(index) for index in range(len(calls))))

    limit = None if seconds is None else seconds + _GRACE_SECONDS
    with contextlib.suppress(TimeLimit):
        call_with_limit(lambda: asyncio.run(together()), limit, in_thread=_loop_is_running())
    late = [Outcome(failure=timeout_failure(seconds or 0.0, n_rows)) for _, _, n_rows in calls]
    return [outcomes.get(index, late[index]) for index in range(len(calls))]


def await_now(awaitable: Awaitable[Any]) -> Any:
    """The result of an awaitable, in an event loop of its own; in a helper thread where a loop is running."""
    return call_with_limit(lambda: asyncio.run(_wait_for(awaitable)), None, in_thread=_loop_is_running())


async def _run_coroutine(
    function: RewardFunction, offered: Mapping[str, Any], n_rows: int, seconds: float | None
) -> Outcome:
    pushed = Pushed(n_rows)
    try:
        task = asyncio.ensure_future(_wait_for(call_with_hooks(function, offered, pushed)))
        await asyncio.wait({task}, timeout=seconds)
        if not task.done():
            task.cancel()
            return Outcome(failure=timeout_failure(seconds, n_rows))
        return outcome_of(task.result(), pushed)
    except TimeLimit:
        return Outcome(failure=timeout_failure(seconds, n_rows))
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return Outcome(failure=failure_of(error))


async def _wait_for(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def _loop_is_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
