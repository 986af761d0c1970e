"""After a batch failed: which of its rows are to blame?

A reward is asked about a whole batch at once, so one completion that makes it hang or raise would cost the rewards
of all the others. Here the rows are asked about one at a time, under a budget:

* asking takes at most `timeout_seconds` in all, so a batch costs at most twice its timeout;
* one row gets at most max(timeout / n_rows, timeout / 10);
* ending workers that are late and starting new ones may take as long again, but at least `_STARTS_SECONDS`;
* when the first `_HOPELESS` rows fail one after the other, the function is broken rather than the rows, and the rest
  is not tried.

A function whose value for a row depends on the other rows of the batch sees batches of one here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from strop.rewards.contract import Failure, Outcome

AskRow = Callable[[int, float | None], Outcome]
"""Ask about one row, within so many seconds (None: no limit)."""

Prepare = Callable[[], None]
"""Make ready for the next question: start a new worker where the last one died."""

_STARTS_SECONDS = 30.0
_HOPELESS = 8
_ROW_SHARE = 10
_SEARCHABLE = frozenset({"exception", "timeout", "death"})


def worth_searching(outcome: Outcome, n_rows: int) -> bool:
    """Whether the failure may come from single rows; an answer of the wrong shape never does."""
    return outcome.failure is not None and outcome.failure.kind in _SEARCHABLE and n_rows > 1


def search_rows(
    ask: AskRow,
    n_rows: int,
    batch_failure: Failure,
    *,
    timeout_seconds: float | None,
    prepare: Prepare = lambda: None,
    stop_at_first: bool = False,
) -> Outcome:
    """Ask about every row on its own and put the answers together.

    Args:
        ask: asks about one row.
        n_rows: rows in the batch.
        batch_failure: why the whole batch failed.
        timeout_seconds: the reward's timeout for a batch.
        prepare: called before every question; its time is counted apart, as is what `ask` takes beyond its limit.
        stop_at_first: stop at the first row that fails (enough to name it in an error).

    Returns:
        An outcome without `failure`: every row has a value, abstained, or is in `failed`. Metrics pushed while
        searching are kept; extras are put together row by row.
    """
    merged = Outcome(values=[None] * n_rows)
    asking = math.inf if timeout_seconds is None else timeout_seconds  # what is left
    starting = max(asking, _STARTS_SECONDS)
    share = None if timeout_seconds is None else timeout_seconds / min(n_rows, _ROW_SHARE)
    for row in range(n_rows):
        if min(asking, starting) <= 0:
            text = f"{batch_failure.text}; the time for trying rows one by one ran out before this row"
            _give_up(merged, row, n_rows, Failure(batch_failure.kind, text))
            break
        begin = time.monotonic()
        prepare()
        asked = time.monotonic()
        outcome = ask(row, None if share is None else min(share, asking))
        answered = time.monotonic()
        due = asked + min(share or math.inf, asking)
        asking -= min(answered, due) - asked
        starting -= asked - begin + max(answered - due, 0.0)
        _merge(merged, row, n_rows, outcome)
        if merged.failed and stop_at_first:
            break
        if len(merged.failed) == row + 1 == _HOPELESS and n_rows > _HOPELESS:
            last = merged.failed[row]
            text = f"{last.text}; so do all of the first {_HOPELESS} rows, and the rest was not tried"
            _give_up(merged, row + 1, n_rows, Failure(last.kind, text))
            break
    return merged


def _merge(merged: Outcome, row: int, n_rows: int, outcome: Outcome) -> None:
    wrong = outcome.failure or outcome.failed.get(0)
    if wrong is not None:
        merged.failed[row] = wrong
    else:
        merged.values[row] = outcome.values[0]
    merged.metrics.extend(outcome.metrics)
    for name, values in outcome.extras.items():
        merged.extras.setdefault(name, [None] * n_rows)[row] = values[0]


def _give_up(merged: Outcome, first: int, n_rows: int, failure: Failure) -> None:
    for row in range(first, n_rows):
        merged.failed[row] = failure
