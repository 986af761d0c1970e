"""Tools answer, or say in words why they do not."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
import time

import numpy as np
import pytest
from tests.support.patience import with_patience

from strop.agents.call_formats import ToolCall
from strop.agents.tools import Tools, as_text
from strop.errors import ConfigError
from strop.event_loop import run_in_loop


def made(function):
    function.__name__, function.__doc__, function.__annotations__ = "f", "Do.\n\nArgs:\n    x: a number\n", {"x": int}
    return Tools([function])


def answer(function, seconds=None):
    (said,) = made(function).answer([ToolCall("f", {"x": 1})], seconds)
    return said.text, said.worked


class NoText:
    def __str__(self):
        raise RuntimeError("no text")

    __repr__ = __str__


CIRCLE: list = []
CIRCLE.append(CIRCLE)


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (42, "42"), ("as it is", "as it is"), (np.float32(0.5), "0.5"), (np.arange(3), "[0, 1, 2]"), (None, "null"),
        ({(1, 2): 3}, "{(1, 2): 3}"), (CIRCLE, "[[...]]"), (b"abc", "abc"), ("\ud800", "?"), ({"a": NoText()},
        '{"a": "(a NoText that cannot be shown)"}'), (NoText(), '"(a NoText that cannot be shown)"'),
    ],
)  # fmt: skip
def test_any_result_becomes_text(result, text):
    assert as_text(result) == text


def test_what_goes_wrong_becomes_words():
    def raises(x):
        raise ValueError("bad x")

    def leaves(x):
        raise SystemExit(3)

    assert answer(raises) == ("Error: ValueError: bad x", False)
    assert answer(leaves) == ("Error: SystemExit: 3", False)
    assert answer(lambda x: time.sleep(50), 0.1) == ("Error: no answer within 0.1 seconds.", False)
    tools = made(lambda x: x)
    said = tools.answer([ToolCall("g", {}), ToolCall("f", {}), ToolCall("f", {}, "the call is not valid JSON.")])
    assert [a.worked for a in said] == [False] * 3
    assert "there is no tool 'g'" in said[0].text and "TypeError" in said[1].text and "valid JSON" in said[2].text


def test_async_tools_are_awaited_together():
    meeting = asyncio.Barrier(5)

    async def f(x):
        await asyncio.wait_for(meeting.wait(), 50)  # nobody goes on before all have come
        return x

    said = made(f).answer([ToolCall("f", {"x": n}) for n in range(5)])
    assert [a.text for a in said] == ["0", "1", "2", "3", "4"]

    async def slow(x):
        await asyncio.sleep(90)

    assert answer(slow, 0.1) == ("Error: no answer within 0.1 seconds.", False)


def test_an_async_tool_that_swallows_its_cancellation_is_left_behind_and_hits_nobody_else():
    """What blocks the loop is interrupted; a tool that only waits must not bring that upon a reward."""
    gate, begun = threading.Event(), threading.Event()

    async def f(x):
        begun.set()
        while not gate.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)

    async def reward():
        end = time.monotonic() + 2.5
        while time.monotonic() < end:
            sum(range(1000))
            await asyncio.sleep(0)
        return 5.0

    said = []
    tool = threading.Thread(target=lambda: said.append(answer(f, 0.1)), daemon=True)
    tool.start()
    assert begun.wait(20)
    try:
        assert run_in_loop(reward()) == 5.0
        tool.join(20)
        assert said == [("Error: no answer within 0.1 seconds.", False)]
    finally:
        gate.set()


def test_an_async_tool_that_cancels_itself_is_words():
    async def f(x):
        raise asyncio.CancelledError

    assert answer(f) == ("Error: CancelledError: ", False)


def test_async_tools_beside_rewards_have_a_loop_of_their_own():
    begun, rewarded = threading.Event(), threading.Event()

    async def f(x):
        begun.set()
        return rewarded.wait(5)  # it blocks the loop, as a plain library does

    async def reward():
        rewarded.set()

    tools, said = made(f), []
    tools.apart = True
    tool = threading.Thread(target=lambda: said.extend(tools.answer([ToolCall("f", {"x": 1})])), daemon=True)
    tool.start()
    assert begun.wait(20)
    run_in_loop(reward())
    tool.join(20)
    assert [a.text for a in said] == ["true"]


@with_patience(0.5, 10.0)
def test_plain_tools_of_several_completions_may_answer_side_by_side(seconds):
    """In threads, each completion's in order; what goes wrong becomes words there too."""
    seen, meeting, ended = [], threading.Barrier(3, timeout=50), threading.Event()

    def f(x):
        seen.append(x)
        if x == 2:
            raise KeyboardInterrupt
        if x in (0, 1, 5):  # the first of each
            meeting.wait()
        if x == 5:
            ended.wait(60)
        return threading.current_thread().name

    calls = [ToolCall("f", {"x": n}) for n in range(6)]
    said = made(f).answer(calls, seconds, whose=["a", "b", "a", "b", "a", "c"], at_once=3)
    ended.set()
    late = f"Error: no answer within {seconds:g} seconds."
    assert [a.text for a in said] == ["strop-tool", "strop-tool", "Error: KeyboardInterrupt: ", "strop-tool",
                                      "strop-tool", late]  # fmt: skip
    assert [x for x in seen if x in (0, 2, 4)] == [0, 2, 4] and seen.index(1) < seen.index(3)
    assert {a.text for a in made(lambda x: threading.current_thread().name).answer(calls)} == {"MainThread"}


def test_a_tool_may_set_an_alarm_of_its_own():
    def f(x):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(5)
        signal.alarm(0)
        return "timed"

    assert answer(f) == ("timed", True)


def test_tools_that_cannot_be_described_are_refused():
    def undescribed(x):
        return x

    with pytest.raises(ConfigError, match="undescribed"):
        Tools([undescribed])
