from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack

from tests.support.patience import with_patience

from strop.rewards.calls import RewardCall
from strop.rewards.request import ScoringRequest


def run_together(functions, seconds, completions=("a",)):
    """Ask all, and then wait for all."""
    request = ScoringRequest.checked(["p"] * len(completions), completions, None, None)
    with ExitStack() as stack:
        asked = [stack.enter_context(RewardCall("f", f).asked(request, seconds)) for f in functions]
        return [answer() for answer in asked]


async def slow_lengths(completions, **kwargs):
    await asyncio.sleep(0.01)
    return [len(text) for text in completions]


def test_async_functions_wait_at_the_same_time():
    together = []
    ready = None

    async def meet(completions):
        nonlocal ready
        ready = ready or asyncio.Event()
        together.append(1)
        if len(together) == 3:
            ready.set()
        await asyncio.wait_for(ready.wait(), 50)
        return [float(len(together))]

    outcomes = run_together([meet] * 3, 60.0)
    assert [outcome.values for outcome in outcomes] == [[3.0], [3.0], [3.0]]


@with_patience(0.3, 10.0)
def test_one_hanging_coroutine_does_not_take_the_others_with_it(seconds):
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

    hung, fine, stubborn, failed = run_together([hang, slow_lengths, hang_on, fail], seconds)
    assert hung.failure.kind == "timeout" and f"{seconds:g} seconds" in hung.failure.text
    assert fine.values == [1.0]
    assert stubborn.failure.kind == "timeout"
    assert failed.failure.kind == "exception" and "my own" in failed.failure.text


def test_a_coroutine_that_blocks_the_loop_is_interrupted():
    async def block(completions):
        while True:
            time.sleep(0.01)

    (outcome,) = run_together([block], 0.1)
    assert outcome.failure.kind == "timeout"


def test_a_running_loop_is_no_obstacle():
    async def notebook():
        return run_together([slow_lengths], 10.0, ["abc"])

    (outcome,) = asyncio.run(notebook())
    assert outcome.values == [3.0]
