from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from strop.errors import ConfigError, RolloutError
from strop.rollout.bounded_http import HttpStatusError, JsonClient


class RawServer:
    """Accepts connections and answers with the bytes it was told, piece by piece."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.pieces: list[bytes] = []
        self.pause_s = 0.0
        self.hold = False  # keep the connection open after the last piece
        self.received = b""
        self.closed = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            data = connection.recv(65536)
            while b"Content-Length: " in data and not data.partition(b"\r\n\r\n")[2]:
                data += connection.recv(65536)  # the body of a request may come in a packet of its own
            self.received = data
            try:
                for piece in self.pieces:
                    connection.sendall(piece)
                    time.sleep(self.pause_s)
                if self.hold:
                    self.closed.wait(10)
            except OSError:
                pass

    def answer(self, body: str, status: str = "200 OK") -> None:
        self.pieces = [f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()]

    def close(self) -> None:
        self.closed.set()
        self.socket.close()


@pytest.fixture
def server() -> Iterator[RawServer]:
    server = RawServer()
    yield server
    server.close()


def test_json_goes_out_and_comes_back(server: RawServer) -> None:
    server.answer('{"a": [1, 2]}')
    assert JsonClient(server.url + "/base/", "secret").post("/x", {"b": 3}, 5.0) == {"a": [1, 2]}
    head, body = server.received.split(b"\r\n\r\n")
    assert head.startswith(b"POST /base/x ") and b"Bearer secret" in head
    assert json.loads(body) == {"b": 3}
    server.answer("")
    assert JsonClient(server.url).get("/y", 5.0) is None
    assert server.received.startswith(b"GET /y ")


def test_an_error_status_is_named_with_the_servers_words(server: RawServer) -> None:
    server.answer("out of memory", "500 Internal Server Error")
    with pytest.raises(HttpStatusError, match=r"500: out of memory") as caught:
        JsonClient(server.url).post("/x", {}, 5.0)
    assert caught.value.status == 500


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('{"error":{"message":"EngineCore encountered an issue.","param":null,"code":500}}', "EngineCore"),
        ('{"error": "no such path"}', "no such path"),
        ('{"detail":"Not Found"}', "Not Found"),
        ('{"other": 1}', '{"other": 1}'),
        ("[1]", r"\[1\]"),
    ],
)
def test_the_message_is_taken_out_of_an_error_in_json(server: RawServer, body: str, words: str) -> None:
    server.answer(body, "500 Internal Server Error")
    with pytest.raises(HttpStatusError, match=f"500: {words}.*Look at the server's log"):
        JsonClient(server.url).post("/x", {}, 5.0)


def test_an_answer_that_is_not_json_is_named(server: RawServer) -> None:
    server.answer("<html>hello</html>")
    with pytest.raises(RolloutError, match=r"not JSON: '<html>hello"):
        JsonClient(server.url).post("/x", {}, 5.0)
    assert JsonClient(server.url).post("/x", {}, 5.0, text_too=True) == "<html>hello</html>"


@pytest.mark.parametrize("kind", ["silent", "no body", "trickle in head", "trickle in body", "endless body"])
def test_a_server_that_stalls_is_left_in_time(server: RawServer, kind: str) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
    server.hold = True
    if kind == "no body":
        server.pieces = [head]
    elif kind == "trickle in head":
        server.pieces, server.pause_s = [b"HTTP/1.1 200 OK\r\n", *[b"X: y\r\n"] * 100], 0.05
    elif kind == "trickle in body":
        server.pieces, server.pause_s = [head, *[b" "] * 100], 0.05
    elif kind == "endless body":  # without a length the end of the connection is the end of the body
        server.pieces, server.pause_s = [b"HTTP/1.1 200 OK\r\n\r\n", *[b" "] * 100], 0.05
    start = time.monotonic()
    with pytest.raises(RolloutError, match=r"within 0\.3 s"):
        JsonClient(server.url).post("/x", {}, 0.3)
    assert time.monotonic() - start < 3.0  # it would be 5 s or more without the watchdog


@pytest.mark.parametrize("pieces", [[], [b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{"], [b"nonsense\r\n\r\n"]])
def test_a_server_that_dies_is_named(server: RawServer, pieces: list[bytes]) -> None:
    server.pieces = pieces
    with pytest.raises(RolloutError, match="not running, or died"):
        JsonClient(server.url).post("/x", {}, 5.0)


def test_no_server_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(RolloutError, match="not running, or died"):
        JsonClient(f"http://127.0.0.1:{port}").get("/x", 5.0)


def test_calls_in_progress_can_be_ended(server: RawServer) -> None:
    server.hold = True
    client = JsonClient(server.url)
    errors: list[BaseException] = []

    def call() -> None:
        try:
            client.post("/x", {}, 30.0)
        except RolloutError as error:
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    while not server.received:
        time.sleep(0.01)
    client.abort()
    thread.join(5.0)
    assert not thread.is_alive() and len(errors) == 1


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "http://", ""])
def test_addresses_are_checked(url: str) -> None:
    with pytest.raises(ConfigError, match=r"http://127\.0\.0\.1:8000"):
        JsonClient(url)
