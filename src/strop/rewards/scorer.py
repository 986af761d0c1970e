"""`RewardSet`: one call that scores completions with every kind of reward, and that no reward can break.

    rewards = RewardSet([accuracy_reward, "path/to/reward-model"], weights=[1.0, 0.5], on_error="skip")
    table = rewards.score(prompts, completions, completion_ids, {"solution": solutions})
    table.total()                                        # one number per completion

A function is called here, in the script's own process, with the state that it has. Exceptions, wrong answers and Python
code that runs too long are contained: every completion gets a number, an abstention or a counted failure. What a call
in this process cannot survive (native code that hangs, a crash, `os._exit`) ends the run with a named error, and is
contained with `isolate=True`, which moves functions to processes that can be killed.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from strop.errors import ConfigError, DataError, RewardError, SetupError, did_you_mean
from strop.records import PushedMean
from strop.rewards.calls import RewardCall
from strop.rewards.contract import HOOKS, Failure, Outcome, describe
from strop.rewards.request import ScoringRequest
from strop.rewards.resolve import resolve_rewards
from strop.rewards.row_search import search_rows, worth_searching
from strop.rewards.table import RewardCounts, RewardTable

ON_ERROR = ("raise", "skip", "penalize")

_logger = logging.getLogger("strop.rewards")
_WARNINGS_PER_REWARD = 5
_FAILURES_KEPT = 20


class RewardSet:
    """Scores completions with one or several rewards.

    Args:
        reward_funcs: one reward or a list. A function `f(prompts, completions, completion_ids, **columns,
            trainer_state, log_metric, log_extra, environments)` that returns one float or None (abstain) per
            completion, sync or async; it is given only the arguments that its signature names. One whose values
            compare rows with each other should say so: `function.needs_groups = True`. Or the name of a verifier,
            `package.module.function`, a model id, a model, a judge.
        weights: one number per reward; 1.0 each if not given.
        processing_classes: tokenizers of reward models, one per reward, None where the model's own serves.
        on_error: what happens to rows whose reward failed. "raise": a `RewardError` that names reward, row and
            cause. "skip": the row counts as abstained (NaN). "penalize": the row gets `penalty`. Under the last two
            the batch is asked about again row by row, so that one bad row costs one value and not the batch.
        penalty: the value of a failed row under "penalize", before weights.
        timeout_seconds: wall-clock limit of one call of one function, for a whole batch. None: no limit.
            Held by a timer in the main thread; in other threads, and in native code, a watchdog outside ends the run.
        isolate: run functions in processes of their own, all at the same time; refuses those that cannot be pickled or
            ask for `environments`. Models and judges stay.
        memory_limit_bytes: bound on the address space of each such process.
        run_directory: gives the folder where the watchdog writes which reward ended the run (`alarms.jsonl`).
        device: where models given by id are put.
        model_init_kwargs: for `from_pretrained` of models given by id.

    Raises:
        ConfigError: a setting is wrong; all at once.
        SetupError: a package is missing, a model cannot be loaded, or a function cannot be isolated though it must.
    """

    def __init__(
        self,
        reward_funcs: Any,
        *,
        weights: Sequence[float] | None = None,
        processing_classes: Any = None,
        on_error: str = "raise",
        penalty: float = -1.0,
        timeout_seconds: float | None = 300.0,
        isolate: bool = False,
        memory_limit_bytes: int | None = None,
        run_directory: Callable[[], str] | None = None,
        device: Any = None,
        model_init_kwargs: dict[str, Any] | None = None,
    ) -> None:
        self.on_error = on_error
        self.penalty = penalty
        self.timeout_seconds = timeout_seconds
        _check_settings(on_error, penalty, timeout_seconds, isolate, memory_limit_bytes)
        resolved = resolve_rewards(reward_funcs, processing_classes, device=device, model_init_kwargs=model_init_kwargs)
        self.weights = _read_weights(weights, len(resolved))
        self._calls = [
            RewardCall(
                name, function, isolate=isolate, memory_limit_bytes=memory_limit_bytes, run_directory=run_directory
            )
            for name, function in resolved.items()
        ]
        self._warned = dict.fromkeys(self.names, 0)
        self._workers = [call.worker for call in self._calls if call.worker is not None]
        self._lock = threading.RLock()

    @property
    def names(self) -> list[str]:
        """The rewards' names, as metrics use them."""
        return [call.name for call in self._calls]

    @property
    def functions(self) -> list[Any]:
        """The callables behind the names: functions, model rewards, judge rewards."""
        return [call.function for call in self._calls]

    @property
    def places(self) -> dict[str, str]:
        """Where each reward runs."""
        return {call.name: "a process of its own" if call.worker else "this process" for call in self._calls}

    def __len__(self) -> int:
        return len(self._calls)

    def __enter__(self) -> RewardSet:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the workers now and wait for them; otherwise the first `score` does it."""
        with self._lock:
            for worker in self._workers:
                worker.launch()
            for worker in self._workers:
                worker.wait_ready()

    def close(self) -> None:
        """End the workers; a later `score` starts new ones."""
        with self._lock:
            for worker in self._workers:
                worker.kill()

    def check_columns(self, columns: Sequence[str], *, has_ids: bool = True, has_environments: bool = False) -> None:
        """Check at set-up that the rows offer what the functions ask for.

        Raises:
            DataError: a function has a required argument that is neither a fixed one nor a column.
        """
        offered = {"prompts", "completions", "trainer_state", *HOOKS, *columns}
        offered |= {"completion_ids"} if has_ids else set()
        offered |= {"environments"} if has_environments else set()
        problems = [
            f"reward '{call.name}' asks for '{name}'; there is no such column.{did_you_mean(name, columns)}"
            for call in self._calls
            for name in call.accepts.missing(offered)
        ]
        if problems:
            shown = ", ".join(sorted(columns)) or "none"
            raise DataError.collect(
                f"Rewards ask for columns that the rows do not have (they have: {shown}).", problems
            )

    def score(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]] | None = None,
        columns: Mapping[str, Sequence[Any]] | None = None,
        *,
        trainer_state: Any = None,
        environments: Sequence[Any] | None = None,
    ) -> RewardTable:
        """Score a batch.

        Args:
            prompts: (n,) strings, or message lists for conversational data.
            completions: (n,) strings, or message lists.
            completion_ids: (n,) the sampled token ids.
            columns: the rows' other columns, each with one entry per completion.
            trainer_state: passed on to functions that ask for it; workers get its plain data.
            environments: (n,) live environment objects, for functions in this process.

        Returns:
            A `RewardTable`.

        Raises:
            DataError: lengths differ, or a function asks for a column that does not exist.
            RewardError: a reward failed and `on_error` is "raise".
            SetupError: a reward says that its own set-up is wrong, whatever `on_error` is.
        """
        request = ScoringRequest.checked(prompts, completions, completion_ids, columns, trainer_state, environments)
        self.check_columns(
            list(columns or ()), has_ids=completion_ids is not None, has_environments=environments is not None
        )
        if not request.n_rows:
            return self._table(request, [Outcome() for _ in self._calls])
        with self._lock:
            outcomes = self._ask_all(request)
            outcomes = [self._contain(*pair, request) for pair in zip(self._calls, outcomes, strict=True)]
        return self._table(request, outcomes)

    def _ask_all(self, request: ScoringRequest) -> list[Outcome]:
        """One outcome per reward; workers and this process compute at the same time, and coroutines with each other."""
        for worker in self._workers:
            worker.launch()
        with ExitStack() as stack:
            asked = [(call, stack.enter_context(call.asked(request, self.timeout_seconds))) for call in self._calls]
            asked.sort(key=lambda pair: (pair[0].worker is not None, not pair[0].is_async))
            outcomes = {call.name: answer() for call, answer in asked}
        return [outcomes[name] for name in self.names]

    def _contain(self, call: RewardCall, outcome: Outcome, request: ScoringRequest) -> Outcome:
        """Trace a failed batch to its rows; the result has no `failure`, unless no row could be blamed."""
        if outcome.failure is not None and outcome.failure.kind == "setup":
            raise SetupError(f"Reward '{call.name}': {outcome.failure.text}")
        if not call.row_by_row or not worth_searching(outcome, request.n_rows):
            return outcome
        assert outcome.failure is not None
        found = search_rows(
            lambda row, seconds: call.run(request.take([row]), seconds),
            request.n_rows,
            outcome.failure,
            timeout_seconds=self.timeout_seconds if call.timed else None,
            prepare=call.worker.wait_ready if call.worker else lambda: None,
            stop_at_first=self.on_error == "raise",
        )
        if self.on_error == "raise" and not found.failed:
            return outcome
        return found

    def _table(self, request: ScoringRequest, outcomes: Sequence[Outcome]) -> RewardTable:
        n_rows = request.n_rows
        values = np.full((len(outcomes), n_rows), np.nan)  # (n_rewards, n_rows)
        table = RewardTable(values, self.names, self.weights, {})
        problems: list[tuple[str, str]] = []  # (reward, what happened)
        for index, (call, outcome) in enumerate(zip(self._calls, outcomes, strict=True)):
            failed = outcome.failed if outcome.failure is None else dict.fromkeys(range(n_rows), outcome.failure)
            if outcome.failure is None:
                values[index] = [np.nan if value is None else value for value in outcome.values]
            if self.on_error == "penalize":
                values[index, list(failed)] = self.penalty
            table.counts[call.name] = self._count(outcome, failed, n_rows)
            problems += [(call.name, text) for text in _explain(call.name, outcome, failed, request)]
            _collect_pushed(table, call.name, outcome)
        table.failures = [text for _, text in problems[:_FAILURES_KEPT]]
        self.tell(problems)
        return table

    def _count(self, outcome: Outcome, failed: Mapping[int, Failure], n_rows: int) -> RewardCounts:
        timeouts = sum(failure.kind == "timeout" for failure in failed.values())
        abstained = sum(value is None and row not in failed for row, value in enumerate(outcome.values))
        return RewardCounts(
            rows=n_rows,
            abstained=abstained,
            errors=len(failed) - timeouts,
            timeouts=timeouts,
            penalised=len(failed) if self.on_error == "penalize" else 0,
        )

    def tell(self, problems: Sequence[tuple[str, str]]) -> None:
        """Failures, (reward, what happened) each: the first ones of a reward are shown; the metrics count them all.

        Raises:
            RewardError: there are some, and `on_error` is "raise".
        """
        if problems and self.on_error == "raise":
            raise RewardError.collect(_title(len(problems)), [text for _, text in problems])
        for name, text in problems:
            self._warned[name] = self._warned.get(name, 0) + 1
            if self._warned[name] <= _WARNINGS_PER_REWARD:
                last = " (further failures of this reward are counted, not shown)"
                _logger.warning("%s%s", text, last if self._warned[name] == _WARNINGS_PER_REWARD else "")


def _title(n_problems: int) -> str:
    what = "A reward failed." if n_problems == 1 else "Rewards failed."
    return f"{what} Repair it, or set reward_on_error='skip' (such rows are left out) or 'penalize' (the penalty)."


def _explain(name: str, outcome: Outcome, failed: Mapping[int, Failure], request: ScoringRequest) -> list[str]:
    """One sentence per failed row, or one for the batch where no row is to blame."""
    if outcome.failure is not None:
        return [f"reward '{name}', batch of {request.n_rows}: {outcome.failure.text}"]
    return [
        f"reward '{name}', row {row} (completion: {describe(request.arguments['completions'][row])}): {failure.text}"
        for row, failure in sorted(failed.items())
    ]


def _collect_pushed(table: RewardTable, name: str, outcome: Outcome) -> None:
    for key, value in outcome.metrics:
        mean = table.metrics.setdefault(key, PushedMean(0.0, 0.0))
        mean.total += value
        mean.count += 1.0
    for key, column in outcome.extras.items():
        table.extras[key if key not in table.extras else f"{name}/{key}"] = column


def _check_settings(
    on_error: str,
    penalty: float,
    timeout_seconds: float | None,
    isolate: bool,
    memory_limit_bytes: int | None,
) -> None:
    problems = []
    if on_error not in ON_ERROR:
        hint = did_you_mean(str(on_error), ON_ERROR)
        problems.append(f"on_error is {on_error!r}; it must be one of {', '.join(ON_ERROR)}.{hint}")
    if isinstance(penalty, bool) or not isinstance(penalty, (int, float)) or not math.isfinite(penalty):
        problems.append(f"penalty is {penalty!r}; it must be a finite number")
    if timeout_seconds is not None and not (isinstance(timeout_seconds, (int, float)) and timeout_seconds > 0):
        problems.append(f"timeout_seconds is {timeout_seconds!r}; it must be a positive number of seconds, or None")
    if not isinstance(isolate, bool):
        problems.append(f"isolate is {isolate!r}; it must be True or False")
    if memory_limit_bytes is not None and not (isinstance(memory_limit_bytes, int) and memory_limit_bytes > 0):
        problems.append(f"memory_limit_bytes is {memory_limit_bytes!r}; it must be a positive number, or None")
    elif memory_limit_bytes is not None and not isolate:
        problems.append("memory_limit_bytes bounds processes of their own; it needs isolate=True")
    if problems:
        raise ConfigError.collect("The reward settings cannot be used.", problems)


def _read_weights(weights: Sequence[float] | None, n_rewards: int) -> np.ndarray:
    if weights is None:
        return np.ones(n_rewards)
    if len(weights) != n_rewards:
        raise ConfigError(f"{len(weights)} reward weights were given for {n_rewards} rewards. Give one per reward.")
    read = np.asarray(weights, dtype=np.float64)  # (n_rewards,)
    if not np.isfinite(read).all():
        raise ConfigError(f"The reward weights must be finite numbers; got {list(weights)}.")
    return read
