from __future__ import annotations

import signal
import threading
import time

import pytest

from strop.time_limit import TimeLimit, alarm_in_use, call_with_limit, can_interrupt


def spin():
    while True:
        pass


def spin_swallowing():
    while True:
        try:
            while True:
                time.sleep(0.01)
        except Exception:
            pass


def spin_swallowing_everything_once():
    try:
        spin()
    except BaseException:
        spin()


@pytest.mark.parametrize("work", [spin, spin_swallowing, lambda: time.sleep(100), spin_swallowing_everything_once])
def test_the_alarm_ends_python_loops_and_sleeps_in_the_main_thread(work):
    with pytest.raises(TimeLimit):
        call_with_limit(work, 0.1)


def test_results_and_errors_pass_through():
    assert call_with_limit(lambda: 5, 10.0) == 5
    assert call_with_limit(lambda: 5, None) == 5
    with pytest.raises(ZeroDivisionError):
        call_with_limit(lambda: 1 / 0, 10.0)


def test_outside_of_the_main_thread_the_work_just_runs():
    seen = []

    def outside():
        seen.append(can_interrupt())
        seen.append(call_with_limit(lambda: time.sleep(0.1) or "done", 0.01))

    thread = threading.Thread(target=outside)
    thread.start()
    thread.join()
    assert can_interrupt() and seen == [False, "done"]


def test_the_previous_alarm_goes_on_with_what_it_has_left():
    fired = []
    old = signal.signal(signal.SIGALRM, lambda *_: fired.append(1))
    try:
        signal.setitimer(signal.ITIMER_REAL, 100.0)
        call_with_limit(lambda: time.sleep(0.05), 300.0)
        left, _ = signal.getitimer(signal.ITIMER_REAL)
        assert 0 < left < 99.96 and not fired
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        deadline = time.monotonic() + 60
        while not fired and time.monotonic() < deadline:
            time.sleep(0.01)
        assert fired == [1]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def test_the_alarm_is_off_and_the_handler_back_afterwards():
    before = signal.getsignal(signal.SIGALRM)
    assert not alarm_in_use()
    assert call_with_limit(alarm_in_use, 10.0)
    assert not alarm_in_use()
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    assert signal.getsignal(signal.SIGALRM) is before
