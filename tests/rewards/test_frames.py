from __future__ import annotations

import socket
import threading
import time

import pytest

from strop.rewards.frames import ClosedError, FrameTooLargeError, receive_frame, send_frame


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    yield ours, theirs
    ours.close()
    theirs.close()


@pytest.mark.parametrize("size", [0, 1, 10, 3_000_000])
def test_frames_arrive_whole(pair, size):
    payload = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    sender = threading.Thread(target=send_frame, args=(pair[0], payload))
    sender.start()
    assert receive_frame(pair[1], time.monotonic() + 30) == payload
    sender.join()


def test_two_frames_stay_apart(pair):
    send_frame(pair[0], b"one")
    send_frame(pair[0], b"two")
    assert receive_frame(pair[1]) == b"one"
    assert receive_frame(pair[1]) == b"two"


def test_nobody_answers(pair):
    with pytest.raises(TimeoutError):
        receive_frame(pair[0], time.monotonic() + 0.05)


def test_nobody_reads(pair):
    with pytest.raises(TimeoutError):
        send_frame(pair[0], b"x" * 50_000_000, time.monotonic() + 0.1)


def test_half_a_frame_times_out(pair):
    pair[1].sendall(b"\0\0\0\0\0\0\0\x09abc")
    with pytest.raises(TimeoutError):
        receive_frame(pair[0], time.monotonic() + 0.05)


def test_an_answer_that_lies_ready_is_read_even_after_the_deadline(pair):
    send_frame(pair[1], b"late reader")
    assert receive_frame(pair[0], time.monotonic() - 5) == b"late reader"


def test_the_other_side_is_gone(pair):
    pair[1].close()
    with pytest.raises(ClosedError):
        receive_frame(pair[0], time.monotonic() + 5)


def test_a_frame_beyond_the_limit_is_not_read(pair):
    pair[1].sendall(b"\xff" * 8)
    with pytest.raises(FrameTooLargeError):
        receive_frame(pair[0], time.monotonic() + 5, limit_bytes=1000)
