"""What is kept out here of a program under way."""

from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import Any, cast

from strop.rewards.sandbox import running
from strop.rewards.sandbox.protocol import Limits


def test_a_program_that_asks_and_never_reads_fills_no_memory_out_here() -> None:
    session = running.Session(cast(Any, None), Limits(1.0, 1 << 30, 1 << 20, 1 << 16))
    session._members = cast(Any, {"serve": SimpleNamespace(queue=bytearray())})
    frame = b"C" + struct.pack(">I", 1 << 20) + bytes(1 << 20)
    for _ in range(100):
        if not session.stopped_for:
            session._sort(frame)
    assert session.stopped_for == "output" and len(session._members["serve"].queue) <= running._QUEUE_BYTES + len(frame)
