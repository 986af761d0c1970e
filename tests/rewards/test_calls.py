from __future__ import annotations

import os
import threading

import pytest

from strop.errors import SetupError
from strop.rewards.calls import RewardCall
from strop.rewards.request import ScoringRequest

SEEN: list[str] = []


def remembers(completions, **kwargs):
    SEEN.extend(completions)
    return [float(os.getpid()) for _ in completions]


class Model:
    runs_models = True

    def __call__(self, completions, **kwargs):
        return remembers(completions)


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
        if call.worker:
            call.worker.kill()


def test_a_function_is_called_here_with_the_state_it_has(make):
    SEEN.clear()
    call = make(remembers)
    assert call.worker is None
    assert call.run(request(), 20.0).values[0] == os.getpid()
    assert SEEN == ["a", "a"]


def test_isolation_moves_it_to_a_copy(make):
    SEEN.clear()
    call = make(remembers, isolate=True)
    assert call.worker is not None
    assert call.run(request(), 20.0).values[0] != os.getpid()
    assert SEEN == []


def test_models_and_judges_stay(make):
    assert make(Model(), isolate=True).worker is None


def test_isolation_refuses_what_cannot_move(make):
    with pytest.raises(SetupError, match="'f' cannot run in a process of its own: it asks for the live environments"):
        make(with_environments, isolate=True)
    lock = threading.Lock()
    with pytest.raises(SetupError, match=r"it cannot be pickled.*reward_isolation off"):
        make(lambda completions: [0.0] * len([lock, *completions]), isolate=True)
    call = make(remembers, isolate=True)
    with pytest.raises(SetupError, match=r"the argument 'handle' cannot be pickled"):
        call.run(request(handle=[lock] * 2), 20.0)


def test_environments_are_given_at_home(make):
    asked = ScoringRequest.checked(["p"] * 2, ["a"] * 2, None, None, environments=[3, 4])
    assert make(with_environments).run(asked, 20.0).values == [3.0, 4.0]


def test_a_death_costs_one_worker(make):
    def dies(completions):
        import os

        if completions[0] == "a":
            os._exit(1)
        return [0.0] * len(completions)

    call = make(dies, isolate=True)
    assert call.run(request(), 20.0).failure.kind == "death"
    for _ in range(2):
        assert call.run(ScoringRequest.checked(["p"], ["b"], None, None), 20.0).values == [0.0]
    assert call.worker.starts == 2


def test_an_aborted_request_costs_the_worker(make):
    call = make(lambda completions: [0.0] * len(completions), isolate=True)
    with call.asked(request(), 20.0):
        pass
    outcome = call.run(request(), 20.0)
    assert outcome.failure is None and call.worker.starts == 2
