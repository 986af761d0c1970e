"""Environments are told apart when made, live in threads or processes of their own, and answer side by side."""

from __future__ import annotations

import gc
import threading
import time
from concurrent.futures import Future

import pytest

from strop.agents.environments import EnvironmentReward, Environments
from strop.agents.threads import Hung
from strop.errors import ConfigError, RolloutError, SetupError


class Counter:
    """A tool environment, as TRL has them."""

    def reset(self, start: int = 0, **row):
        self.count = start

    def increment(self, by: int) -> int:
        """Add to the count.

        Args:
            by: How much.
        """
        self.count += by
        return self.count

    def get_reward(self) -> float:
        return float(self.count)


class Steps:
    """An environment of turns."""

    reward = 0.5

    def step(self, text):
        return None, True


class StepTool:
    """A tool environment whose tool is called step."""

    def reset(self):
        """Begin."""

    def step(self, direction: str) -> str:
        """Go.

        Args:
            direction: Where to.
        """
        return direction


class Sleeper(Counter):
    def reset(self, seconds: float = 0.0, meeting=None, **row):
        time.sleep(seconds)
        if meeting is not None:
            meeting.wait()
        return "awake"


def test_the_two_protocols_are_told_apart():
    (counter,) = Environments(Counter).kinds.values()
    assert not counter.takes_turns and counter.tool_names == {"increment"} and counter.has_reward
    (steps,) = Environments(Steps).kinds.values()
    assert steps.takes_turns and not steps.schemas and not steps.has_reward
    (tool,) = Environments(StepTool).kinds.values()
    assert not tool.takes_turns and tool.tool_names == {"step"}


def test_what_is_no_environment_is_refused():
    class Undescribed(Counter):
        def other(self, x):
            return x

    with pytest.raises(ConfigError, match=r"other: .*Or begin its name with '_'"):
        Environments(Undescribed)
    with pytest.raises(ConfigError, match="can do nothing in it"):
        Environments(object)
    with pytest.raises(ConfigError, match="cannot be called"):
        Environments({"a": 3})


def test_rows_choose_among_several_and_slots_are_used_again():
    environments = Environments({"count": Counter, "steps": Steps})
    rows = [{"environment": name} for name in ("count", "steps", "count")]
    first = environments.take(rows)
    assert [type(slot.environment) for slot in first] == [Counter, Steps, Counter] and first[0] is not first[2]
    assert environments.take(rows) == first
    with pytest.raises(ConfigError, match="Did you mean 'steps'"):
        environments.take([{"environment": "step"}])


def test_they_answer_side_by_side_and_one_that_hangs_is_left_behind():
    environments = Environments(Sleeper, seconds=60.0)
    slots = environments.take([{}] * 8)
    together = {"other": 1, "meeting": threading.Barrier(8, timeout=50)}  # nobody goes on before all have come
    assert environments.ask([(slot, "reset", (), together) for slot in slots]) == ["awake"] * 8
    environments.seconds = 0.05
    (result,) = environments.ask([(slots[0], "reset", (), {"seconds": 30.0})])
    assert isinstance(result, Hung) and slots[0].lost and environments.left_behind.running == 1
    assert environments.take([{}])[0] is not slots[0]


def test_async_methods_share_a_loop():
    import asyncio

    class Later(Counter):
        async def reset(self, **row):
            self.lock = asyncio.Lock()
            async with self.lock:
                self.loop = asyncio.get_running_loop()

        async def increment(self, by: int) -> bool:
            """Add.

            Args:
                by: How much.
            """
            async with self.lock:
                return asyncio.get_running_loop() is self.loop

    environments = Environments(Later)
    (slot,) = environments.take([{}])
    assert environments.ask([(slot, "reset", (), {}), (slot, "increment", (), {"by": 1})])[1] is True


def test_rewards_are_what_environments_say():
    environments = Environments({"count": Counter, "steps": Steps})
    slots = environments.take([{"environment": "count"}, {"environment": "steps"}])
    environments.ask([(slots[0], "reset", (), {"start": 3})])
    given = [slot.environment for slot in slots]
    count, steps = (EnvironmentReward(environments, kind) for kind in environments.kinds.values())
    assert count.reward_name == "Counter" and count(environments=given) == [3.0, None]
    assert steps(environments=given) == [None, 0.5]


def test_environments_are_closed_and_made_anew():
    closed = []

    class Closing(Counter):
        def close(self):
            closed.append(self)

    environments = Environments(Closing)
    (slot,) = environments.take([{}])
    environments.close()
    assert closed == [slot.environment] and environments.take([{}])[0] is not slot


def test_an_environment_that_is_made_when_the_run_has_ended_is_closed():
    """A conversation that nobody waits for is in the middle of a slow factory while all are closed."""
    gate, making, ended = threading.Event(), threading.Event(), threading.Event()
    closed, refused = [], []

    class Slow(Counter):
        def __init__(self):
            making.set()
            gate.wait(20)

        def close(self):
            closed.append(self)

    def check():
        if ended.is_set():
            raise RolloutError("it has ended")

    def converse():
        environments.lend(check)
        for _ in range(2):  # one that was in the making, and one that would be taken later
            try:
                environments.take([{}])
            except RolloutError as error:
                refused.append(str(error))

    thread = threading.Thread(target=converse, daemon=True)
    environments = Environments(Counter)
    environments.close()
    environments.kinds[None].factory = Slow
    thread.start()
    assert making.wait(20)
    ended.set()
    environments.close()
    gate.set()
    thread.join(20)
    assert refused == ["it has ended"] * 2 and len(closed) == 1 and not any(environments._pool.values())


def test_threads_end_with_environments_that_nobody_closed():
    before = {*threading.enumerate()}
    made = Environments(Counter)
    made.take([{}, {}])
    begun = {*threading.enumerate()} - before
    assert len(begun) == 2
    del made
    gc.collect()
    for thread in begun:
        thread.join(60)
        assert not thread.is_alive()


def test_a_process_of_its_own_is_killed_when_it_hangs():
    environments = Environments(Sleeper, seconds=60.0, isolated=True)
    (slot,) = environments.take([{}])
    assert environments.ask([(slot, "reset", (), {"seconds": 0})]) == ["awake"]
    environments.seconds = 0.2
    (result,) = environments.ask([(slot, "reset", (), {"seconds": 30.0})])
    slot._process.join(60)
    assert isinstance(result, Hung) and slot._process.exitcode == -9

    class Local(Counter):
        pass

    with pytest.raises(SetupError, match="environment_isolation"):
        Environments(Local, isolated=True).take([{}])


def test_those_that_hang_cost_one_wait_when_they_are_closed_and_have_no_reward(monkeypatch):
    gate = threading.Event()

    class Stuck(Counter):
        def increment(self, by: int) -> int:
            """Add to the count.

            Args:
                by: How much.
            """
            gate.wait(20)
            return by

        def close(self):
            gate.wait(20)

    environments = Environments(Stuck, seconds=0.05)
    slots = environments.take([{}] * 8)
    (kind,) = environments.kinds.values()
    environments.ask([(slot, "reset", (), {"start": 3}) for slot in slots])
    given = [slot.environment for slot in slots]
    assert isinstance(environments.ask([(slots[0], "increment", (), {"by": 1})])[0], Hung)
    assert EnvironmentReward(environments, kind)(environments=given) == [None, *[3.0] * 7]
    monkeypatch.setattr("strop.agents.environments.CLOSING_SECONDS", 0.5)
    began = time.monotonic()
    environments.close()
    assert time.monotonic() - began < 0.5 * 7, "they were waited for one after the other"
    (answer,) = environments.ask([(slots[1], "reset", (), {})])
    assert isinstance(answer, RuntimeError) and "was closed" in str(answer)
    gate.set()


def test_two_sets_are_lent_in_turn_and_not_before_they_are_given_back():
    environments = Environments(Counter)
    first, second = Future(), Future()
    sets = []
    for until in (first, second):
        environments.lend()
        sets.append(environments.take([{}, {}]))
        environments.keep(until)
    assert not {*sets[0]} & {*sets[1]}
    lent = threading.Event()
    threading.Thread(target=lambda: (environments.lend(), lent.set()), daemon=True).start()
    assert not lent.wait(0.1)
    first.set_result(None)
    assert lent.wait(20) and environments.take([{}, {}]) == sets[0]
    second.cancel()
    environments.lend()
    assert environments.take([{}, {}]) == sets[1]
