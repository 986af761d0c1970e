"""A reward with a place to run in: this process, or a worker of its own.

`begin` sends the request where there is a worker, so that several workers and this process compute at the same time;
`finish` collects. A function that turns out not to be movable comes home, once, and the reason is kept in `place`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from strop.errors import SetupError
from strop.rewards.contract import Accepts, Outcome, RewardFunction
from strop.rewards.gather import run_together
from strop.rewards.invoke import is_async, run_function, timeout_failure
from strop.rewards.request import CannotSend, ScoringRequest
from strop.rewards.transfer import parcels, stays_home
from strop.rewards.watchdog import TimeLimit, call_with_limit
from strop.rewards.worker import NotMovable, Worker, workers_available

HOME = "this process"


class RewardCall:
    """One reward: its name, its function, and where it runs.

    Args:
        name: what metrics and errors call it.
        function: the callable.
        isolate: True insists on a worker, False forbids it, "auto" uses one where the function can move and keeps
            its meaning (`transfer.stays_home`).
        timed: False for models and judges, which bring their own limits and are slow for good reasons.
        memory_limit_bytes: bound on the worker's address space.
    """

    def __init__(
        self,
        name: str,
        function: RewardFunction,
        *,
        isolate: str | bool = "auto",
        timed: bool = True,
        memory_limit_bytes: int | None = None,
    ) -> None:
        self.name = name
        self.function = function
        self.accepts = Accepts.of(function)
        self.is_async = is_async(function)
        self.timed = timed
        self.row_by_row = not getattr(function, "needs_groups", False)
        self.place = HOME
        self._isolate = isolate
        self._worker: Worker | None = None
        self._under_way: tuple[ScoringRequest, float | None] | None = None
        self._starts_reported = 1
        reason = self._why_home()
        if isolate is True and reason:
            raise SetupError(f"Reward '{name}' cannot run in a worker process: {reason}. Pass isolate=False.")
        if reason:
            self.place = f"{HOME}: {reason}"
        else:
            self.place = "worker process"
            self._worker = Worker(parcels(function), memory_limit_bytes=memory_limit_bytes)

    @property
    def at_home(self) -> bool:
        """Whether it runs in this process."""
        return self._worker is None

    def launch(self) -> None:
        """Start the worker without waiting for it."""
        if self._worker is not None:
            try:
                self._worker.launch()
            except NotMovable as error:
                self._come_home(str(error))

    def wait_ready(self) -> None:
        """Start the worker and wait until it can answer, or come home."""
        if self._worker is not None:
            try:
                self._worker.wait_ready()
            except NotMovable as error:
                self._come_home(str(error))

    def begin(self, request: ScoringRequest, seconds: float | None) -> None:
        """Send the request to the worker; at home nothing happens until `finish`."""
        seconds = seconds if self.timed else None
        self.wait_ready()
        if self._worker is not None:
            try:
                self._worker.ask(request.blobs(self.accepts), request.n_rows, seconds)
            except (CannotSend, NotMovable) as error:
                self._come_home(str(error))
        self._under_way = request, seconds

    def finish(self) -> Outcome:
        """The answer to the request that was begun."""
        assert self._under_way is not None
        request, seconds = self._under_way
        self._under_way = None
        if self._worker is not None:
            outcome = self._worker.answer()
            if outcome.failure is None or outcome.failure.kind != "transfer":
                return outcome
            self._come_home(outcome.failure.text)
        if self.is_async:
            return run_together([(self.function, request.offered(), request.n_rows)], seconds)[0]
        return self._run_here(request, seconds)

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

    def _run_here(self, request: ScoringRequest, seconds: float | None) -> Outcome:
        work: Callable[[], Outcome] = lambda: run_function(self.function, request.offered(), request.n_rows)  # noqa: E731
        try:
            return call_with_limit(work, seconds)
        except TimeLimit:
            return Outcome(failure=timeout_failure(seconds, request.n_rows))

    def _why_home(self) -> str:
        if self._isolate is False:
            return "isolate=False"
        if not self.timed:
            return "models and judges share this process's devices"
        if not workers_available():
            return "worker processes need a POSIX system"
        if "environments" in self.accepts.names:
            return "it asks for the live environments"
        if self._isolate == "auto":
            if getattr(self.function, "cannot_hang", False):
                return "its running time is bounded by the length of its input"
            return stays_home(self.function)
        return ""

    def _come_home(self, reason: str) -> None:
        if self._isolate is True:
            raise SetupError(
                f"Reward '{self.name}' cannot run in a worker process: {reason}. Move it to the top level of a module, "
                "install cloudpickle, or pass isolate=False, where the time limit cannot stop everything."
            )
        if self._worker is not None:
            self._worker.kill()
        self._worker = None
        self.place = f"{HOME}: {reason}"


def run_home_async(calls: list[RewardCall], request: ScoringRequest, seconds: float | None) -> list[Outcome]:
    """Run the async rewards that live in this process concurrently."""
    offered: dict[str, Any] = request.offered()
    return run_together([(call.function, offered, request.n_rows) for call in calls], seconds)
