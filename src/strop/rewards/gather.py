"""Async reward functions: several at once in the shared event loop, each with its own time limit."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from strop.rewards.contract import Outcome, RewardFunction
from strop.rewards.event_loop import run_in_loop
from strop.rewards.invoke import Pushed, call_with_hooks, failure_of, outcome_of, timeout_failure
from strop.rewards.time_limit import TimeLimit

_GRACE_SECONDS = 1.0
"""How much later than its coroutines the event loop itself is interrupted: only a blocking coroutine needs that."""

AsyncCall = tuple[RewardFunction, Mapping[str, Any], int]
"""A function, what it is offered, and the number of rows."""


def run_together(calls: Sequence[AsyncCall], seconds: float | None) -> list[Outcome]:
    """Run async functions concurrently, each with `seconds` of wall-clock time."""
    outcomes: dict[int, Outcome] = {}

    async def one(index: int) -> None:
        outcomes[index] = await _run_coroutine(*calls[index], seconds)

    async def together() -> None:
        await asyncio.gather(*(one(index) for index in range(len(calls))))

    with contextlib.suppress(TimeLimit):
        run_in_loop(together(), None if seconds is None else seconds + _GRACE_SECONDS)
    late = [Outcome(failure=timeout_failure(seconds or 0.0, n_rows)) for _, _, n_rows in calls]
    return [outcomes.get(index, late[index]) for index in range(len(calls))]


async def _run_coroutine(
    function: RewardFunction, offered: Mapping[str, Any], n_rows: int, seconds: float | None
) -> Outcome:
    pushed = Pushed(n_rows)
    task: asyncio.Future[Any] | None = None
    try:
        task = asyncio.ensure_future(call_with_hooks(function, offered, pushed))
        await asyncio.wait({task}, timeout=seconds)
        if not task.done():
            return Outcome(failure=timeout_failure(seconds, n_rows))
        return outcome_of(task.result(), pushed)
    except TimeLimit:
        return Outcome(failure=timeout_failure(seconds, n_rows))
    except (KeyboardInterrupt, asyncio.CancelledError):
        raise
    except BaseException as error:
        return Outcome(failure=failure_of(error))
    finally:
        if task is not None:
            task.cancel()
