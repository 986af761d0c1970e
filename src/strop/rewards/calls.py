"""A reward with a place to run in: this process, or with `reward_isolation` a process of its own.

`begin` sends the request where there is a worker, so that several workers and this process compute at the same time;
`finish` collects.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from strop.errors import SetupError
from strop.rewards.contract import Accepts, Outcome, RewardFunction
from strop.rewards.gather import run_together
from strop.rewards.invoke import is_async, run_function, timeout_failure
from strop.rewards.isolation import NotMovable, Worker
from strop.rewards.request import ScoringRequest
from strop.rewards.time_limit import TimeLimit, call_with_limit
from strop.rewards.watchdog import watch_over

HOME = "this process"
AWAY = "a process of its own"


class RewardCall:
    """One reward: its name, its function, and where it runs.

    Args:
        name: what metrics and errors call it.
        function: the callable.
        isolate: run it in a worker process. Models and judges share this process's devices and stay.
        timed: False for models and judges, which bring their own limits and are slow for good reasons.
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
        timed: bool = True,
        memory_limit_bytes: int | None = None,
        run_directory: Callable[[], str] | None = None,
    ) -> None:
        self.name = name
        self.function = function
        self.accepts = Accepts.of(function)
        self.is_async = is_async(function)
        self.timed = timed
        self.row_by_row = not getattr(function, "needs_groups", False)
        self._run_directory = run_directory
        self._worker: Worker | None = None
        self._under_way: tuple[ScoringRequest, float | None] | None = None
        self._starts_reported = 1
        if isolate and timed:
            if "environments" in self.accepts.names:
                raise self._refused("it asks for the live environments")
            try:
                self._worker = Worker(function, memory_limit_bytes=memory_limit_bytes)
            except NotMovable as error:
                raise self._refused(str(error)) from None

    @property
    def at_home(self) -> bool:
        """Whether it runs in this process."""
        return self._worker is None

    @property
    def place(self) -> str:
        """Where it runs, in words."""
        return HOME if self.at_home else AWAY

    def launch(self) -> None:
        """Start the worker without waiting for it."""
        if self._worker is not None:
            self._worker.launch()

    def wait_ready(self) -> None:
        """Start the worker and wait until it can answer."""
        if self._worker is not None:
            try:
                self._worker.wait_ready()
            except NotMovable as error:
                raise self._refused(str(error)) from None

    def begin(self, request: ScoringRequest, seconds: float | None) -> None:
        """Send the request to the worker; at home nothing happens until `finish`."""
        seconds = seconds if self.timed else None
        if self._worker is not None:
            self.wait_ready()
            try:
                self._worker.ask(request.sent(self.accepts), request.n_rows, seconds)
            except NotMovable as error:
                raise self._refused(str(error)) from None
        self._under_way = request, seconds

    def finish(self) -> Outcome:
        """The answer to the request that was begun."""
        assert self._under_way is not None
        request, seconds = self._under_way
        self._under_way = None
        if self._worker is not None:
            return self._worker.answer()
        if self.is_async:
            return run_home_async([self], request, seconds)[0]
        with self._watched(request, seconds):
            try:
                return call_with_limit(lambda: run_function(self.function, request.offered(), request.n_rows), seconds)
            except TimeLimit:
                return Outcome(failure=timeout_failure(seconds, request.n_rows))

    def run(self, request: ScoringRequest, seconds: float | None) -> Outcome:
        """`begin` and `finish`."""
        self.begin(request, seconds)
        return self.finish()

    def abort(self) -> None:
        """Forget a request that was begun; its worker may be anywhere in it, so it is replaced."""
        if self._under_way is not None and self._worker is not None:
            self._worker.kill()
        self._under_way = None

    def take_restarts(self) -> int:
        """How many times the worker had to be replaced since this was last asked."""
        if self._worker is None:
            return 0
        restarts = max(self._worker.starts - self._starts_reported, 0)
        self._starts_reported += restarts
        return restarts

    def close(self) -> None:
        """End the worker."""
        if self._worker is not None:
            self._worker.kill()

    @property
    def run_directory(self) -> str | None:
        """The folder of the run as it is now: it may have moved since the trainer was made."""
        return None if self._run_directory is None else self._run_directory()

    def _watched(self, request: ScoringRequest, seconds: float | None) -> AbstractContextManager[None]:
        return watch_over(
            self.name,
            request.n_rows,
            seconds,
            movable=self.timed,
            directory=self.run_directory,
            step=request.steps_done,
        )

    def _refused(self, reason: str) -> SetupError:
        return SetupError(
            f"Reward '{self.name}' cannot run in a process of its own: {reason}. Let it hold only what can be pickled, "
            "or leave reward_isolation off."
        )


def run_home_async(calls: Sequence[RewardCall], request: ScoringRequest, seconds: float | None) -> list[Outcome]:
    """Run the async rewards that live in this process concurrently."""
    offered = request.offered()
    names = ", ".join(call.name for call in calls)
    with watch_over(names, request.n_rows, seconds, directory=calls[0].run_directory, step=request.steps_done):
        return run_together([(call.function, offered, request.n_rows) for call in calls], seconds)
