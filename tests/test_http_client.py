from __future__ import annotations

import asyncio
import gzip
import json
import os
import pickle
import socket
import threading
import time
import traceback
from collections.abc import Iterator

import pytest

from strop.errors import ConfigError
from strop.http_client import (
    HttpAnswerError,
    HttpConnectionError,
    HttpError,
    HttpStatusError,
    HttpTimeoutError,
    JsonClient,
)
from tests.support.ports import reserved_port

HELD_S = 20.0
"""For how long a server goes on that nobody leaves."""


class RawServer:
    """Accepts connections and answers with the bytes it was told, piece by piece."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.pieces: list[bytes] = []
        self.endless = b""  # comes after the last piece, again and again
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
                begin = time.monotonic()
                while self.endless and time.monotonic() - begin < HELD_S and not self.closed.wait(0.05):
                    connection.sendall(self.endless)
                if self.hold:
                    self.closed.wait(HELD_S)
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
    with pytest.raises(HttpAnswerError, match=r"not JSON \(Expecting value.*\): '<html>hello"):
        JsonClient(server.url).post("/x", {}, 5.0)
    assert JsonClient(server.url).post("/x", {}, 5.0, text_too=True) == "<html>hello</html>"


@pytest.mark.parametrize("kind", ["silent", "no body", "trickle in head", "trickle in body", "endless body"])
def test_a_server_that_stalls_is_left_in_time(server: RawServer, kind: str) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
    server.hold = True
    if kind == "no body":
        server.pieces = [head]
    elif kind == "trickle in head":
        server.pieces, server.endless = [b"HTTP/1.1 200 OK\r\n"], b"X: y\r\n"
    elif kind == "trickle in body":
        server.pieces, server.endless = [head], b" "
    elif kind == "endless body":  # without a length the end of the connection is the end of the body
        server.pieces, server.endless = [b"HTTP/1.1 200 OK\r\n\r\n"], b" "
    with pytest.raises(HttpTimeoutError, match=r"within 0\.3 s"):
        JsonClient(server.url).post("/x", {}, 0.3)


@pytest.mark.parametrize("pieces", [[], [b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{"], [b"nonsense\r\n\r\n"]])
def test_a_server_that_dies_is_named(server: RawServer, pieces: list[bytes]) -> None:
    server.pieces = pieces
    with pytest.raises(HttpConnectionError, match="not running, or died"):
        JsonClient(server.url).post("/x", {}, 5.0)


def test_no_server_is_named() -> None:
    with reserved_port() as port, pytest.raises(HttpConnectionError, match="not running, or died"):
        JsonClient(f"http://127.0.0.1:{port}").get("/x", 5.0)


def test_calls_in_progress_can_be_ended(server: RawServer) -> None:
    server.hold = True
    client = JsonClient(server.url)
    errors: list[BaseException] = []

    def call() -> None:
        try:
            client.post("/x", {}, 10 * HELD_S)
        except HttpError as error:
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    while not server.received:
        time.sleep(0.01)
    client.abort()
    thread.join(HELD_S / 2)
    assert not thread.is_alive() and len(errors) == 1


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "http://", ""])
def test_addresses_are_checked(url: str) -> None:
    with pytest.raises(ConfigError, match=r"http://127\.0\.0\.1:8000"):
        JsonClient(url)


@pytest.mark.parametrize("url", ["http://me:pass@host:x", "http://host:99999999", "http://ho\nst"])
def test_addresses_that_only_look_right_are_refused_without_their_password(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        JsonClient(url)
    assert "pass@" not in str(caught.value)


@pytest.mark.parametrize("status", ["302 Found", "307 Temporary Redirect", "304 Not Modified"])
def test_a_redirect_is_no_success(server: RawServer, status: str) -> None:
    server.pieces = [f"HTTP/1.1 {status}\r\nLocation: {server.url}/y\r\nContent-Length: 2\r\n\r\n{{}}".encode()]
    with pytest.raises(HttpStatusError, match=rf"status {status[:3]}.*redirect, which is not followed") as caught:
        JsonClient(server.url).post("/x", {}, 5.0)
    assert caught.value.status == int(status[:3]) and server.received.startswith(b"POST /x")


@pytest.mark.parametrize("text", ["[" * 100_000, "1" * 5000, "\x00", "{'a': 1}"])
def test_what_json_does_not_know_is_not_json(server: RawServer, text: str) -> None:
    server.answer(text)
    with pytest.raises(HttpAnswerError, match="not JSON"):
        JsonClient(server.url).get("/x", 5.0)


@pytest.mark.parametrize("length", ["1" + "0" * 15, "1" + "0" * 40, "-5", "1001"])
def test_a_body_that_is_announced_too_long_is_not_awaited(server: RawServer, length: str) -> None:
    server.pieces, server.hold = [f"HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{{}}".encode()], True
    with pytest.raises(HttpError) as caught:  # the server goes on holding the connection
        JsonClient(server.url, most_bytes=1000).get("/x", HELD_S / 2)
    assert not isinstance(caught.value, HttpTimeoutError)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_without_end_is_left_at_the_bound(server: RawServer, chunked: bool) -> None:
    block = b"10000\r\n" + b" " * 0x10000 + b"\r\n" if chunked else b" " * 0x10000
    head = b"HTTP/1.1 200 OK\r\n" + b"Transfer-Encoding: chunked\r\n" * chunked + b"\r\n"
    server.pieces, server.hold = [head, *[block] * 200], True
    with pytest.raises(HttpAnswerError, match="more than 1000000 bytes, the most that is read"):
        JsonClient(server.url, most_bytes=1_000_000).get("/x", 5.0)


def test_a_packed_body_is_not_unpacked(server: RawServer) -> None:
    body = gzip.compress(b" " * 10_000_000)
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    server.pieces = [head + body]
    with pytest.raises(HttpAnswerError, match="'gzip', which was not asked for"):
        JsonClient(server.url).get("/x", 5.0)
    assert b"identity" in server.received


KEY = "sk-secret-1234"


@pytest.mark.parametrize("status", ["200 OK", "401 Unauthorized", "302 Found", "500 Oops"])
def test_keys_never_stand_in_an_error(server: RawServer, status: str) -> None:
    server.answer(f"{KEY} and hunter2 \x1b[31m", status)
    url = server.url.replace("http://", "http://me:hunter2@")
    with pytest.raises(HttpError) as caught:
        JsonClient(url, KEY).get("/x", 5.0)
    shown = "".join(traceback.format_exception(caught.value))
    assert KEY not in shown and "hunter2" not in shown and "\x1b" not in str(caught.value) and "***" in shown


@pytest.mark.parametrize("key", ["sk-a\n", "sk a", "sk-ä", "sk-a\r\nX-Other: 1"])
def test_a_key_that_is_none_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(ConfigError, match="API key") as caught:
        JsonClient("http://127.0.0.1:1", key)
    assert key not in str(caught.value) and "sk" not in str(caught.value)


def test_a_proxy_is_not_asked_for_this_machine(server: RawServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    server.answer("1")
    assert JsonClient(server.url).get("/x", 5.0) == 1


def test_calls_work_after_a_fork_in_a_running_loop_and_pickled(server: RawServer) -> None:
    server.answer("7")
    client = JsonClient(server.url, KEY)

    async def in_a_loop() -> object:
        return client.get("/x", 5.0)

    assert client.get("/x", 5.0) == asyncio.run(in_a_loop()) == pickle.loads(pickle.dumps(client)).get("/x", 5.0) == 7
    child = os.fork()
    if child == 0:
        os._exit(0 if client.get("/x", 5.0) == 7 else 1)
    assert os.waitpid(child, 0)[1] == 0
