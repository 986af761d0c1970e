"""Work side by side: in the order of each completion, so many at a time, and no longer than it may take."""

from __future__ import annotations

import threading
import time

from strop.agents.left_behind import LeftBehind
from strop.agents.side_by_side import side_by_side


def chain(events, name, *seconds):
    """Works that wait, and note when they begin and end."""

    def work(number, wait):
        def run():
            events.append(("begin", name, number))
            time.sleep(wait)
            events.append(("end", name, number))
            return f"{name}{number}"

        return run

    return [work(number, wait) for number, wait in enumerate(seconds)]


def test_completions_wait_together_and_each_keeps_its_order():
    events = []
    chains = [chain(events, "a", 0.2, 0.1), [], chain(events, "b", 0.2, 0.1), chain(events, "c", 0.3)]
    began = time.monotonic()
    said = side_by_side(chains, 8, None, "late")
    assert time.monotonic() - began < 0.6, "one after the other they take 0.9 s"
    assert said == [["a0", "a1"], [], ["b0", "b1"], ["c0"]]
    for name in "ab":
        own = [(what, number) for what, who, number in events if who == name]
        assert own == [("begin", 0), ("end", 0), ("begin", 1), ("end", 1)]


def test_no_more_than_so_many_at_a_time():
    now, most, lock = [0], [0], threading.Lock()

    def work():
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.02)
        with lock:
            now[0] -= 1
        return threading.current_thread() is not threading.main_thread()

    assert side_by_side([[work, work] for _ in range(5)], 2, None, False) == [[True, True]] * 5
    assert most == [2]


def test_one_that_hangs_is_left_behind_and_its_completion_goes_on():
    release = threading.Event()

    def hang():
        release.wait(30)
        return "too late"

    def wake():
        release.set()  # what was left behind ends now, and is not heard
        time.sleep(0.05)
        return "after"

    began = time.monotonic()
    assert side_by_side([[hang, wake], [lambda: "quick"]], 1, 0.2, "late") == [["late", "after"], ["quick"]]
    assert time.monotonic() - began < 5


def test_threads_that_are_left_behind_are_counted_while_they_run():
    release, left = threading.Event(), LeftBehind()
    chains = [[lambda: release.wait(50)], [lambda: release.wait(50)], [lambda: "quick"]]
    assert side_by_side(chains, 8, 0.2, "late", left) == [["late"], ["late"], ["quick"]]
    assert left.running == 2
    release.set()
    while left.running:
        time.sleep(0.01)
    assert side_by_side([[lambda: "quick"]] * 3, 8, 50.0, "late", left) == [["quick"]] * 3 and not left.running
