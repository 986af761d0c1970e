"""A reward with a place to run in: this process, or with `reward_isolation` a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from strop.event_loop import shared_loop
from strop.rewards.contract import Accepts, Outcome, RewardFunction
from strop.rewards.invoke import await_function, is_async, late, run_function
from strop.rewards.isolation import Worker, cannot_move
from strop.rewards.request import ScoringRequest
from strop.rewards.watchdog import watch_over
from strop.time_limit import TimeLimit, call_with_limit

_GRACE_SECONDS = 1.0
"""How much later than its coroutine the event loop itself is interrupted: only a blocking coroutine needs that."""


class RewardCall:
    """One reward: its name, its function, and where it runs.

    Models and judges (`runs_models`) share this process's devices and stay; they have no time limit either, since they
    bring their own and are slow for good reasons.

    Args:
        name: what metrics and errors call it.
        function: the callable.
        isolate: run it in a worker process.
        memory_limit_bytes: bound on the worker's address space.
        run_directory: gives the folder where the watchdog writes which reward ended the run.

    Raises:
        SetupError: it cannot be isolated though it must.
    """

    def __init__(
        self,
        name: str,
        function: RewardFunction,
        *,
        isolate: bool = False,
        memory_limit_bytes: int | None = None,
        run_directory: Callable[[], str] | None = None,
    ) -> None:
        self.name = name
        self.function = function
        self.accepts = Accepts.of(function)
        self.is_async = is_async(function)
        self.timed = not getattr(function, "runs_models", False)
        self.row_by_row = not getattr(function, "needs_groups", False)
        self._run_directory = run_directory
        self.worker: Worker | None = None
        if isolate and self.timed:
            if "environments" in self.accepts.names:
                raise cannot_move(name, "it asks for the live environments")
            self.worker = Worker(function, name, memory_limit_bytes=memory_limit_bytes)

    @contextmanager
    def asked(self, request: ScoringRequest, seconds: float | None) -> Iterator[Callable[[], Outcome]]:
        """Have the function asked; what is yielded waits for the answer.

        A worker computes from now on, and so does a coroutine; a function of this process only when it is waited for.
        Whoever leaves without the answer ends the coroutine, or the worker, which may be anywhere in the request.
        """
        seconds = seconds if self.timed else None
        if self.worker is not None:
            self.worker.ask(request.sent(self.accepts), request.n_rows, seconds)
            try:
                yield self.worker.answer
            finally:
                self.worker.forget()
        elif self.is_async:
            with shared_loop() as loop:
                begun = loop.start(self._awaited(request, seconds))
                patience = None if seconds is None else seconds + _GRACE_SECONDS
                try:
                    yield lambda: _in_time(lambda: loop.result(begun, patience), request, seconds)
                finally:
                    begun.cancel()
        else:
            yield lambda: self._called(request, seconds)

    def run(self, request: ScoringRequest, seconds: float | None) -> Outcome:
        """Ask, and wait for the answer."""
        with self.asked(request, seconds) as answer:
            return answer()

    def _called(self, request: ScoringRequest, seconds: float | None) -> Outcome:
        def call() -> Outcome:
            return run_function(self.function, request.offered(), request.n_rows)

        with self._watched(request, seconds):
            return _in_time(lambda: call_with_limit(call, seconds), request, seconds)

    async def _awaited(self, request: ScoringRequest, seconds: float | None) -> Outcome:
        with self._watched(request, seconds):
            return await await_function(self.function, request.offered(), request.n_rows, seconds)

    def _watched(self, request: ScoringRequest, seconds: float | None) -> AbstractContextManager[None]:
        return watch_over(
            self.name,
            request.n_rows,
            seconds,
            movable=self.timed,
            directory=None if self._run_directory is None else self._run_directory(),
            step=request.steps_done,
        )


def _in_time(work: Callable[[], Outcome], request: ScoringRequest, seconds: float | None) -> Outcome:
    try:
        return work()
    except TimeLimit:
        return late(seconds, request.n_rows)
