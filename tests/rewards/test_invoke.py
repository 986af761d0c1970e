from __future__ import annotations

import asyncio
import functools
import time

import pytest

from strop.errors import SetupError
from strop.rewards.invoke import is_async, run_function, run_together


async def slow_lengths(completions, **kwargs):
    await asyncio.sleep(0.01)
    return [len(text) for text in completions]


def test_sync_and_async_functions_give_the_same_outcome():
    def lengths(completions):
        return [len(text) for text in completions]

    offered = {"completions": ["a", "bb"], "prompts": ["", ""]}
    assert run_function(lengths, offered, 2).values == run_function(slow_lengths, offered, 2).values == [1.0, 2.0]


def test_is_async_sees_through_partials_and_instances():
    class Instance:
        async def __call__(self, completions):
            return [0.0]

    assert is_async(slow_lengths) and is_async(functools.partial(slow_lengths)) and is_async(Instance())
    assert not is_async(len) and not is_async(functools.partial(len))


def test_hooks_collect_metrics_and_columns():
    def reward(completions, log_metric, log_extra):
        log_metric("words", 2)
        log_metric("words", 4)
        log_extra("seen", completions)
        return [0.0, 0.0]

    outcome = run_function(reward, {"completions": ["a", "b"]}, 2)
    assert outcome.metrics == [("words", 2.0), ("words", 4.0)]
    assert outcome.extras == {"seen": ["a", "b"]}


def test_a_column_of_the_wrong_length_is_the_functions_error():
    def reward(completions, log_extra):
        log_extra("seen", ["only one"])
        return [0.0, 0.0]

    failure = run_function(reward, {"completions": ["a", "b"]}, 2).failure
    assert failure is not None and "log_extra('seen', ...) got 1 values for 2 completions" in failure.text


@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(3), GeneratorExit(), MemoryError(), RecursionError()])
def test_whatever_is_raised_is_contained(error):
    def reward(completions):
        raise error

    failure = run_function(reward, {"completions": ["a"]}, 1).failure
    assert failure is not None and failure.kind == "exception"
    assert type(error).__name__ in failure.text


def test_the_users_interrupt_is_not_contained():
    def reward(completions):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_function(reward, {"completions": ["a"]}, 1)


def test_a_set_up_error_is_told_apart():
    def reward(completions):
        raise SetupError("install the thing")

    failure = run_function(reward, {"completions": ["a"]}, 1).failure
    assert failure is not None and failure.kind == "setup" and failure.text == "install the thing"


def test_async_functions_wait_at_the_same_time():
    together = []
    ready = None

    async def meet(completions):
        nonlocal ready
        ready = ready or asyncio.Event()
        together.append(1)
        if len(together) == 3:
            ready.set()
        await asyncio.wait_for(ready.wait(), 10)
        return [float(len(together))]

    outcomes = run_together([(meet, {"completions": ["a"]}, 1)] * 3, 20.0)
    assert [outcome.values for outcome in outcomes] == [[3.0], [3.0], [3.0]]


def test_one_hanging_coroutine_does_not_take_the_others_with_it():
    async def hang(completions):
        await asyncio.sleep(1000)

    async def hang_on(completions):
        while True:
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                continue

    async def fail(completions):
        raise TimeoutError("my own")

    calls = [(f, {"completions": ["a"]}, 1) for f in (hang, slow_lengths, hang_on, fail)]
    hung, fine, stubborn, failed = run_together(calls, 0.2)
    assert hung.failure.kind == "timeout" and "0.2 seconds" in hung.failure.text
    assert fine.values == [1.0]
    assert stubborn.failure.kind == "timeout"
    assert failed.failure.kind == "exception" and "my own" in failed.failure.text


def test_a_coroutine_that_blocks_the_loop_is_interrupted():
    async def block(completions):
        while True:
            time.sleep(0.01)

    (outcome,) = run_together([(block, {"completions": ["a"]}, 1)], 0.1)
    assert outcome.failure.kind == "timeout"


def test_a_running_loop_is_no_obstacle():
    async def notebook():
        return run_together([(slow_lengths, {"completions": ["abc"]}, 1)], 10.0)

    (outcome,) = asyncio.run(notebook())
    assert outcome.values == [3.0]
