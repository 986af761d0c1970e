"""Ports of this machine that are kept free for a test, whatever else runs here."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def reserved_port() -> Iterator[int]:
    """A port at which nobody listens, and that the system gives to nobody else meanwhile.

    A server of the test may listen there if it sets SO_REUSEADDR, as http.server and a TCPStore do.
    """
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        yield int(held.getsockname()[1])
