from __future__ import annotations

import asyncio
import functools

import pytest

from strop.errors import SetupError
from strop.rewards.invoke import is_async, run_function


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


def test_a_sync_function_may_return_an_awaitable_even_inside_a_running_loop():
    def reward(completions):
        return slow_lengths(completions)

    async def notebook():
        return run_function(reward, {"completions": ["abc"]}, 1)

    assert run_function(reward, {"completions": ["abc"]}, 1).values == [3.0]
    assert asyncio.run(notebook()).values == [3.0]
