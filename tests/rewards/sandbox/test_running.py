"""What is kept out here of a program under way."""

from __future__ import annotations

import asyncio
import struct
from types import SimpleNamespace
from typing import Any, cast

import pytest

from strop.rewards.sandbox import running
from strop.rewards.sandbox.protocol import Limits


class Unread:
    """An input that nobody reads."""

    def __init__(self) -> None:
        self.held = bytearray()

    def is_closing(self) -> bool:
        return False

    def write(self, data: bytes) -> None:
        self.held += data

    def get_write_buffer_size(self) -> int:
        return len(self.held)


def test_a_program_that_asks_and_never_reads_fills_no_memory_out_here() -> None:
    frame = b"C" + struct.pack(">I", 1 << 20) + bytes(1 << 20)
    serve = running.Member.__new__(running.Member)
    serve.stdin = cast(Any, Unread())

    async def carry() -> None:
        session = running.Session(cast(Any, None), Limits(1.0, 1 << 30, 1 << 20, 1 << 16))
        judge = SimpleNamespace(stdout=asyncio.StreamReader())
        judge.stdout.feed_data(frame * 100)
        await session._carry_questions(cast(Any, judge), serve)

    with pytest.raises(running.Stopped, match="output"):
        asyncio.run(carry())
    assert serve.stdin.get_write_buffer_size() <= running._QUEUE_BYTES + len(frame)
