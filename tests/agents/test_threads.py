"""Work side by side: in the order of each completion, so many at a time, and no longer than it may take."""

from __future__ import annotations

import signal
import threading
import time

import pytest
from tests.support.patience import with_patience

from strop.agents.threads import LeftBehind, side_by_side

PATIENCE_S = 60
"""After which a work that waits for another has waited in vain."""


def chain(events, name, *meetings):
    """Works that note when they begin and end, and in between wait for those that they are to meet."""

    def work(number, meeting):
        def run():
            events.append(("begin", name, number))
            if meeting is not None:
                meeting.wait()
            events.append(("end", name, number))
            return f"{name}{number}"

        return run

    return [work(number, meeting) for number, meeting in enumerate(meetings)]


def test_completions_wait_together_and_each_keeps_its_order():
    events, meeting = [], threading.Barrier(3, timeout=PATIENCE_S)  # nobody ends before all three have begun
    chains = [chain(events, "a", meeting, None), [], chain(events, "b", meeting, None), chain(events, "c", meeting)]
    said = side_by_side(chains, 8, None, "late", LeftBehind())
    assert said == [["a0", "a1"], [], ["b0", "b1"], ["c0"]]
    for name in "ab":
        own = [(what, number) for what, who, number in events if who == name]
        assert own == [("begin", 0), ("end", 0), ("begin", 1), ("end", 1)]


def test_no_more_than_so_many_at_a_time():
    now, most, lock = [0], [0], threading.Lock()
    two, first = threading.Barrier(2, timeout=PATIENCE_S), iter([True, True])

    def work():
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
            meets = next(first, False)
        if meets:  # the first two
            two.wait()
        with lock:
            now[0] -= 1
        return threading.current_thread() is not threading.main_thread()

    assert side_by_side([[work, work] for _ in range(5)], 2, None, False, LeftBehind()) == [[True, True]] * 5
    assert most == [2]


@with_patience(0.2, 10.0)
def test_one_that_hangs_is_left_behind_and_its_completion_goes_on(seconds):
    release, left = threading.Event(), []

    def hang():
        left.append(threading.current_thread())
        release.wait(PATIENCE_S)
        return "too late"

    def wake():
        release.set()
        left[0].join(PATIENCE_S)  # what was left behind has ended now, and is not heard
        return "after"

    said = side_by_side([[hang, wake], [lambda: "quick"]], 1, seconds, "late", LeftBehind())
    assert said == [["late", "after"], ["quick"]]


@with_patience(0.2, 10.0)
def test_threads_that_are_left_behind_are_counted_while_they_run(seconds):
    release, left = threading.Event(), LeftBehind()
    chains = [[lambda: release.wait(50)], [lambda: release.wait(50)], [lambda: "quick"]]
    assert side_by_side(chains, 8, seconds, "late", left) == [["late"], ["late"], ["quick"]]
    assert left.running == 2
    release.set()
    while left.running:
        time.sleep(0.01)
    assert side_by_side([[lambda: "quick"]] * 3, 8, 50.0, "late", left) == [["quick"]] * 3 and not left.running


def test_after_an_interrupt_no_further_call_is_made():
    interrupted, made, left = threading.Event(), [], []

    def interrupt():
        left.append(threading.current_thread())
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        interrupted.wait(PATIENCE_S)

    chains = [[interrupt, lambda: made.append("the completion's next")], [lambda: made.append("the next completion's")]]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background process ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            side_by_side(chains, 1, None, None, LeftBehind())
    finally:
        signal.signal(signal.SIGINT, before)
    workers = [thread for thread in threading.enumerate() if thread.name == "strop-completion"]
    interrupted.set()
    for thread in [*left, *workers]:
        thread.join(PATIENCE_S)
    assert not made
