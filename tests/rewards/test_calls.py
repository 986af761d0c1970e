from __future__ import annotations

import os
import threading

import pytest

from strop.errors import SetupError
from strop.rewards.calls import RewardCall
from strop.rewards.request import ScoringRequest
from strop.rewards.verifiers import think_format_reward

SEEN: list[str] = []


def pids(completions, **kwargs):
    import os

    return [float(os.getpid()) for _ in completions]


def remembers(completions, **kwargs):
    SEEN.extend(completions)
    return [float(os.getpid()) for _ in completions]


def with_environments(completions, environments):
    return [float(environment) for environment in environments]


def request(n=2, **columns):
    return ScoringRequest.checked(["p"] * n, ["a"] * n, [[1]] * n, columns)


@pytest.fixture
def make():
    made = []

    def build(function, **settings):
        made.append(RewardCall("f", function, **settings))
        return made[-1]

    yield build
    for call in made:
        call.close()


def test_auto_moves_what_can_move(make):
    call = make(pids)
    assert call.place == "worker process" and not call.at_home
    assert call.run(request(), 20.0).values[0] != os.getpid()


def test_false_keeps_it_here(make):
    call = make(pids, isolate=False)
    assert call.run(request(), 20.0).values[0] == os.getpid()
    assert call.place == "this process: isolate=False"


@pytest.mark.parametrize(
    ("function", "settings", "reason"),
    [
        (remembers, {}, "it writes to 'SEEN'"),
        (with_environments, {}, "live environments"),
        (think_format_reward, {}, "bounded"),
        (pids, {"timed": False}, "models and judges"),
    ],
)
def test_auto_keeps_what_should_stay(make, function, settings, reason):
    call = make(function, **settings)
    assert call.at_home and reason in call.place


def test_true_moves_even_what_writes_around_it(make):
    SEEN.clear()
    call = make(remembers, isolate=True)
    assert call.run(request(), 20.0).values[0] != os.getpid()
    assert SEEN == []


def test_true_refuses_what_cannot_move(make):
    with pytest.raises(SetupError, match="live environments"):
        make(with_environments, isolate=True)
    lock = threading.Lock()
    call = make(lambda completions: [0.0] * len([lock, *completions]), isolate=True)
    with pytest.raises(SetupError, match=r"cannot run in a worker process.*isolate=False"):
        call.run(request(), 20.0)


def test_auto_comes_home_when_the_function_cannot_be_sent(make):
    lock = threading.Lock()
    call = make(lambda completions: [float(lock.locked())] * len(completions))
    assert call.run(request(), 20.0).values == [0.0, 0.0]
    assert call.at_home and "cannot be pickled" in call.place


def test_auto_comes_home_when_an_argument_cannot_be_sent(make):
    call = make(pids)
    assert call.run(request(handle=[threading.Lock()] * 2), 20.0).values == [float(os.getpid())] * 2
    assert "'handle'" in call.place


class Unreadable:
    """Can be written, cannot be read in another process."""

    home = os.getpid()

    def __reduce__(self):
        return _only_at_home, (self.home,)


def _only_at_home(home):
    if os.getpid() != home:
        raise ValueError("not here")
    return Unreadable()


def test_auto_comes_home_when_the_worker_cannot_read_an_argument(make):
    call = make(pids)
    assert call.run(request(odd=[Unreadable()] * 2), 20.0).values == [float(os.getpid())] * 2
    assert "'odd' cannot be read there" in call.place


def test_environments_are_given_at_home_only(make):
    asked = ScoringRequest.checked(["p"] * 2, ["a"] * 2, None, None, environments=[3, 4])
    assert make(with_environments).run(asked, 20.0).values == [3.0, 4.0]


def test_restarts_are_counted_once(make):
    def dies(completions):
        import os

        if completions[0] == "a":
            os._exit(1)
        return [0.0] * len(completions)

    call = make(dies)
    assert call.run(request(), 20.0).failure.kind == "death"
    assert call.take_restarts() == 0
    call.run(ScoringRequest.checked(["p"], ["b"], None, None), 20.0)
    assert call.take_restarts() == 1
    assert call.take_restarts() == 0


def test_an_aborted_request_costs_the_worker(make):
    call = make(pids)
    call.begin(request(), 20.0)
    call.abort()
    outcome = call.run(request(), 20.0)
    assert outcome.failure is None and call.take_restarts() == 1
