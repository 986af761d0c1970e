from __future__ import annotations

import pytest

from strop.rewards.contract import Failure, Outcome
from strop.rewards.row_search import search_rows, worth_searching

BROKEN = Failure("exception", "it raised ValueError")
LATE = Failure("timeout", "it did not return within 1 seconds")


class Clock:
    """Seconds pass in `sleep` alone."""

    now = 0.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr("strop.rewards.row_search.time", made)
    return made


def asker(bad, calls=None, failure=BROKEN):
    def ask(row, seconds):
        if calls is not None:
            calls.append((row, seconds))
        if row in bad:
            return Outcome(failure=failure)
        return Outcome(values=[float(row)], metrics=[("m", float(row))], extras={"col": [row]})

    return ask


def test_only_the_guilty_rows_fail():
    found = search_rows(asker({1, 3}), 5, BROKEN, timeout_seconds=10.0)
    assert found.values == [0.0, None, 2.0, None, 4.0]
    assert found.failed == {1: BROKEN, 3: BROKEN} and found.failure is None
    assert found.metrics == [("m", 0.0), ("m", 2.0), ("m", 4.0)]
    assert found.extras == {"col": [0, None, 2, None, 4]}


def test_a_row_value_that_is_no_number_fails_that_row():
    def ask(row, seconds):
        return Outcome(values=[None], failed={0: Failure("value", "nan")} if row == 1 else {})

    found = search_rows(ask, 3, BROKEN, timeout_seconds=None)
    assert found.failed == {1: Failure("value", "nan")} and found.values == [None, None, None]


def test_each_row_gets_a_tenth_or_its_fair_share():
    calls = []
    search_rows(asker(set(), calls), 20, LATE, timeout_seconds=10.0)
    assert all(seconds == 1.0 for _, seconds in calls) and len(calls) == 20
    calls = []
    search_rows(asker(set(), calls), 2, LATE, timeout_seconds=10.0)
    assert all(seconds == 5.0 for _, seconds in calls)
    calls = []
    search_rows(asker(set(), calls), 2, BROKEN, timeout_seconds=None)
    assert calls == [(0, None), (1, None)]


def test_the_budget_ends_the_search(clock):
    def ask(row, seconds):
        clock.sleep(seconds)
        return Outcome(failure=LATE)

    found = search_rows(ask, 20, LATE, timeout_seconds=2.0)
    assert len(found.failed) == 20
    assert {failure.kind for failure in found.failed.values()} == {"timeout"}
    assert "ran out" in found.failed[19].text or "not tried" in found.failed[19].text


def test_rows_after_the_budget_fail_like_the_batch(clock):
    def ask(row, seconds):
        clock.sleep(seconds)
        return Outcome(values=[1.0])

    found = search_rows(ask, 20, LATE, timeout_seconds=10.0)
    assert found.values == [1.0] * 10 + [None] * 10 and list(found.failed) == [*range(10, 20)]
    assert found.failed[19].kind == "timeout" and "ran out before this row" in found.failed[19].text


def test_a_function_that_fails_on_every_row_is_not_tried_to_the_end():
    calls = []
    found = search_rows(asker(range(100), calls), 100, BROKEN, timeout_seconds=None)
    assert len(calls) == 8 and len(found.failed) == 100
    assert "the rest was not tried" in found.failed[50].text


def test_stop_at_first():
    calls = []
    found = search_rows(asker({2}, calls), 10, BROKEN, timeout_seconds=None, stop_at_first=True)
    assert list(found.failed) == [2] and len(calls) == 3


def test_wrong_shapes_and_single_rows_are_not_searched():
    assert worth_searching(Outcome(failure=LATE), 2)
    assert not worth_searching(Outcome(failure=LATE), 1)
    assert not worth_searching(Outcome(failure=Failure("value", "3 values")), 2)
    assert not worth_searching(Outcome(values=[1.0, 2.0]), 2)


def test_starting_workers_has_a_budget_of_its_own(clock):
    found = search_rows(asker(set()), 5, LATE, timeout_seconds=5.0, prepare=lambda: clock.sleep(20.0))
    assert [row for row in range(5) if row in found.failed] == [2, 3, 4], "30 seconds are over in the second start"
    found = search_rows(asker(set()), 5, LATE, timeout_seconds=101.0, prepare=lambda: clock.sleep(20.0))
    assert found.failed == {}


def test_what_it_takes_to_end_a_late_worker_costs_no_other_row_its_time(clock):
    def ask(row, seconds):
        if row != 1:
            return Outcome(values=[1.0])
        clock.sleep(seconds + 20.0)  # a busy machine takes its time to kill a process
        return Outcome(failure=LATE)

    found = search_rows(ask, 3, LATE, timeout_seconds=10.0)
    assert found.values == [1.0, None, 1.0] and found.failed == {1: LATE}
    found = search_rows(lambda row, seconds: ask(1, seconds), 9, LATE, timeout_seconds=10.0)
    assert "ran out before this row" in found.failed[2].text, "it has an end"
