from __future__ import annotations

import asyncio
import signal
import sys
import threading
import time

import pytest

from strop.event_loop import EventLoop, run_in_loop
from strop.time_limit import TimeLimit


@pytest.fixture
def loop():
    made = EventLoop()
    yield made
    made.close()


async def where():
    return asyncio.get_running_loop(), threading.current_thread()


def test_all_calls_share_one_loop_that_is_not_the_callers():
    async def notebook():
        return run_in_loop(where())

    first, again, inside = run_in_loop(where()), run_in_loop(where()), asyncio.run(notebook())
    assert first == again == inside and first[1] is not threading.current_thread()


def test_what_is_left_running_goes_on_between_two_calls(loop):
    beats = threading.Semaphore(0)

    async def start():
        async def beat():
            while True:
                beats.release()
                await asyncio.sleep(0.001)

        task = asyncio.create_task(beat())
        await asyncio.sleep(0)
        return task

    task = loop.run(start())
    while beats.acquire(blocking=False):  # what was heard until now
        pass
    assert beats.acquire(timeout=60)
    loop._loop.call_soon_threadsafe(task.cancel)


def test_what_it_raises_passes_through(loop):
    async def fail():
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        loop.run(fail())


def test_what_blocks_it_is_interrupted_and_the_loop_lives_on(loop):
    async def block():
        while True:
            time.sleep(0.001)

    async def fine():
        return 5

    with pytest.raises(TimeLimit):
        loop.run(block(), 0.1)
    assert loop.run(fine(), 60.0) == 5


def test_an_interrupted_caller_cancels_what_it_waited_for(loop):
    ended, caller = threading.Event(), threading.get_ident()

    async def wait():
        try:
            while sys._current_frames()[caller].f_code.co_name != "wait":
                await asyncio.sleep(0.001)
            signal.pthread_kill(caller, signal.SIGALRM)
            await asyncio.sleep(100)
        finally:
            ended.set()

    def interrupt(*_):
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            loop.run(wait())
    finally:
        signal.signal(signal.SIGALRM, old)
    assert ended.wait(60)


def test_a_call_from_inside_of_the_loop_gets_one_for_itself():
    async def outer():
        return run_in_loop(where()), await where()

    inner, around = run_in_loop(outer(), 60.0)
    assert inner[0] is not around[0]


def test_what_runs_in_a_loop_that_is_closed_can_give_back_what_it_holds():
    begun, left = threading.Event(), []

    async def holds():
        try:
            begun.set()
            await asyncio.sleep(1000)
        finally:
            await asyncio.sleep(0)
            left.append("given back")

    loop = EventLoop()
    loop.start(holds())
    assert begun.wait(60.0)
    loop.close()
    assert left == ["given back"]
