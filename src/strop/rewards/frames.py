"""Length-prefixed messages over a socket, with a deadline and a size limit on every read and write.

A frame is eight bytes of length (big endian) and that many bytes of payload. Neither side can be kept waiting
longer than its deadline, nor be made to allocate more than its limit.
"""

from __future__ import annotations

import socket
import struct
import time

_HEADER = struct.Struct("!Q")
_CHUNK_BYTES = 1 << 20
_LAST_LOOK_SECONDS = 0.05
"""A deadline in the past still allows this long: the answer may have been lying in the socket for a while."""


class FrameTooLargeError(ValueError):
    """The other side announced a frame beyond the limit."""


class ClosedError(ConnectionError):
    """The other side is gone."""


def send_frame(sock: socket.socket, payload: bytes, deadline: float | None = None) -> None:
    """Send one frame before `deadline` (time.monotonic(), None waits for ever).

    Raises:
        TimeoutError: the other side does not read.
        OSError: the other side is gone.
    """
    sock.settimeout(_left(deadline))
    sock.sendall(_HEADER.pack(len(payload)))
    sock.settimeout(_left(deadline))
    sock.sendall(payload)


def receive_frame(sock: socket.socket, deadline: float | None = None, limit_bytes: int | None = None) -> bytes:
    """Receive one frame before `deadline`.

    Raises:
        TimeoutError: nothing, or not everything, arrived in time.
        ClosedError: the other side closed the connection.
        FrameTooLargeError: the frame is longer than `limit_bytes`.
    """
    (length,) = _HEADER.unpack(_receive(sock, _HEADER.size, deadline))
    if limit_bytes is not None and length > limit_bytes:
        raise FrameTooLargeError(f"a message of {length} bytes where at most {limit_bytes} are allowed")
    return _receive(sock, length, deadline)


def _receive(sock: socket.socket, length: int, deadline: float | None) -> bytes:
    parts: list[bytes] = []
    while length:
        sock.settimeout(_left(deadline))
        part = sock.recv(min(length, _CHUNK_BYTES))
        if not part:
            raise ClosedError("the other side closed the connection")
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(deadline - time.monotonic(), _LAST_LOOK_SECONDS)
