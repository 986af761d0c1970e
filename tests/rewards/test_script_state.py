"""A reward is called in the script's own process: it sees what callbacks change, and shares loops and clients."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

from transformers import TrainerCallback

from strop.rewards import RewardSet
from strop.testing.cases import make_trainer

STAGE = {"n": 0}
LEVEL = 0
HISTORY: list[int] = []
LIMIT = asyncio.Semaphore(1)


class Weights:
    weight = 0.0


def spread(level: float, completions: list[Any]) -> list[float]:
    """Levels that tell the steps apart, with a little variance so that there is something to learn."""
    return [level + 0.001 * i for i, _ in enumerate(completions)]


def from_dict(completions, **kwargs):
    return spread(STAGE["n"], completions)


def from_global(completions, **kwargs):
    return spread(LEVEL, completions)


def from_object(completions, **kwargs):
    return spread(Weights.weight, completions)


def from_environment(completions, **kwargs):
    return spread(float(os.environ["STROP_TEST_STAGE"]), completions)


def through_helper(completions, **kwargs):
    remember(len(completions))
    return spread(len(HISTORY) - 1, completions)


def remember(size):
    HISTORY.append(size)


class Schedule:
    level = 0.0

    def __call__(self, completions, **kwargs):
        return spread(self.level, completions)


SCHEDULE = Schedule()


class Raise(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        global LEVEL
        STAGE["n"] += 1
        LEVEL += 1
        Weights.weight += 1
        SCHEDULE.level += 1
        os.environ["STROP_TEST_STAGE"] = str(STAGE["n"])


def test_what_a_callback_changes_is_seen_by_the_next_call(tmp_path, monkeypatch):
    monkeypatch.setenv("STROP_TEST_STAGE", "0")
    rewards = [from_dict, from_global, from_object, from_environment, through_helper, SCHEDULE]
    trainer = make_trainer(
        "grpo", tmp_path, num_generations=2, max_steps=3, trainer={"reward_funcs": rewards, "callbacks": [Raise()]}
    )
    trainer.train()
    for name in trainer.rewards.names:
        steps = trainer.state.log_history[:3]
        seen = [line[f"rewards/{name}/mean"] for line in steps]
        assert [round(value) for value in seen] == [0, 1, 2], name
    assert len(HISTORY) == 3


def test_a_module_keeps_its_state_in_this_process(tmp_path, monkeypatch):
    (tmp_path / "counting_reward.py").write_text(
        "SEEN = []\ndef note(x): SEEN.append(x)\n"
        "def reward(completions, **kw):\n    note(len(completions))\n    return [0.0 for _ in completions]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import counting_reward

    with RewardSet("counting_reward.reward") as rewards:
        for _ in range(2):
            rewards.score(["p"] * 3, ["a"] * 3)
    assert counting_reward.SEEN == [3, 3]


class Client:
    """As HTTP clients are: bound to the loop of its first use."""

    loop: Any = None

    async def ask(self, text):
        self.loop = self.loop or asyncio.get_running_loop()
        if self.loop is not asyncio.get_running_loop():
            raise RuntimeError("attached to a different loop")
        return float(len(text))


CLIENT = Client()


async def with_semaphore(completions, **kwargs):
    async def one(text):
        async with LIMIT:
            await asyncio.sleep(0.001)
            return float(len(text))

    return list(await asyncio.gather(*map(one, completions)))


async def with_client(completions, **kwargs):
    return list(await asyncio.gather(*map(CLIENT.ask, completions)))


def test_a_semaphore_and_a_client_of_the_script_work_in_every_call():
    rewards = RewardSet([with_semaphore, with_client])
    for _ in range(3):
        assert rewards.score(["p"] * 2, ["a", "bb"]).values.tolist() == [[1.0, 2.0]] * 2
    assert RewardSet([with_client]).score(["p"], ["abc"]).values.tolist() == [[3.0]]  # another set of the same run


def measure(text):
    return float(len(text))


def executor(completions, **kwargs):
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        return list(pool.map(measure, completions))


def fork_pool(completions, **kwargs):
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.map(measure, completions)


def threads(completions, **kwargs):
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(measure, completions))


def one_process(completions, **kwargs):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=lambda: queue.put([measure(text) for text in completions]))
    process.start()
    values = queue.get(timeout=20)
    process.join()
    return values


def own_alarm(completions, **kwargs):
    def out(*_):
        raise TimeoutError

    signal.signal(signal.SIGALRM, out)
    signal.alarm(5)
    values = [measure(text) for text in completions]
    signal.alarm(0)
    return values


def test_rewards_may_start_pools_threads_and_alarms():
    functions = [executor, fork_pool, threads, one_process, own_alarm]
    before = signal.getsignal(signal.SIGALRM)
    with RewardSet(functions, timeout_seconds=60.0) as rewards:
        for _ in range(2):
            assert rewards.score(["p"] * 2, ["a", "bb"]).values.tolist() == [[1.0, 2.0]] * 5
    assert signal.getsignal(signal.SIGALRM) is before and signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
