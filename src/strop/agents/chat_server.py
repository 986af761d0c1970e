"""A server on this machine's own address that takes chat requests and waits for the trainer to answer them.

The standard library's: it has one client, on the loopback, and no load but the model's. Each connection has a thread,
which reads a request, lays it into the inbox and waits; torch is never touched here.
"""

from __future__ import annotations

import json
import queue
import secrets
import selectors
import socket
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import Any

from strop.agents.chat_api import ChatReply, ChatRequest, Refused, completion, events, read_request

MOST_BYTES = 16 * 2**20
IDLE_SECONDS = 60.0
WATCH_SECONDS = 0.5
"""How often a request that waits looks whether its client is still there."""
MODELS = {"object": "list", "data": [{"id": "policy", "object": "model", "created": 0, "owned_by": "strop"}]}


class Gone(Exception):
    """The client has closed its connection before it was answered."""


@dataclass(slots=True)
class Call:
    """A request that waits for its answer, and what became of that."""

    trajectory: int
    request: ChatRequest
    wire: socket.socket
    arrived: float = field(default_factory=time.monotonic)
    answer: ChatReply | Refused | None = None
    done: threading.Event = field(default_factory=threading.Event)
    lost: bool = False  # the client was gone when the answer was to be sent
    settled: threading.Event = field(default_factory=threading.Event)  # `lost` is known

    def give(self, answer: ChatReply | Refused) -> None:
        self.answer = answer
        self.done.set()

    def settle(self, *, reached: bool) -> None:
        self.lost = not reached
        self.settled.set()

    def is_awaited(self) -> bool:
        """Whether the client has not closed its connection; what it sends ahead stays where it is."""
        try:
            with selectors.DefaultSelector() as ready:
                ready.register(self.wire, selectors.EVENT_READ)
                return not ready.select(0) or self.wire.recv(1, socket.MSG_PEEK) != b""
        except (OSError, ValueError):  # a connection that was reset, or is closed here already
            return False


class ChatServer:
    """Serves `/v1/chat/completions` and `/v1/models` on 127.0.0.1; the API key says whose request it is.

    Args:
        inbox: where `Call`s are put.
    """

    def __init__(self, inbox: queue.SimpleQueue[Any]) -> None:
        self.inbox, self.is_open = inbox, True
        self._keys: dict[str, int] = {}
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.owner = self
        self.base_url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), name="strop-chat", daemon=True).start()

    def admit(self, trajectory: int) -> str:
        """A new key, for the requests of one trajectory."""
        key = secrets.token_urlsafe(24)
        self._keys[key] = trajectory
        return key

    def dismiss(self, key: str) -> None:
        """Answer the requests of a trajectory that has ended by an error."""
        self._keys[key] = -1

    def close(self) -> None:
        self.is_open = False
        self._server.shutdown()
        self._server.server_close()

    def wait(self, call: Call, key: str) -> ChatReply:
        """Put a call into the inbox and wait for the trainer's answer. Raises `Refused` or `Gone`."""
        self.inbox.put(call)
        while not call.done.wait(WATCH_SECONDS):
            self.trajectory_of(key)
            if not call.is_awaited():
                raise Gone
        assert call.answer is not None
        if isinstance(call.answer, Refused):
            raise call.answer
        return call.answer

    def trajectory_of(self, key: str) -> int:
        if key not in self._keys:
            raise Refused("The API key belongs to no trajectory of this batch.", 401, "invalid_api_key")
        if self._keys[key] < 0 or not self.is_open:
            raise Refused("This trajectory has ended, by its time limit or with its batch.", 410, "trajectory_ended")
        return self._keys[key]


class _Server(ThreadingTCPServer):  # http.server's own looks up the name of its address, which may take seconds
    daemon_threads, block_on_close, request_queue_size = True, False, 1024
    owner: ChatServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no event."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version, timeout = "HTTP/1.1", IDLE_SECONDS
    wbufsize, disable_nagle_algorithm = -1, True
    server: _Server
    call: Call | None = None  # what this connection asks now

    def _serve(self) -> None:
        self.call, reached = None, False
        try:
            reached = self._send(200, *self._answer())
        except Refused as refused:
            reached = self._send(refused.status, "application/json", json.dumps(refused.body()))
        except Gone:
            self.close_connection = True
        finally:
            if self.call is not None:
                self.call.settle(reached=reached)

    do_GET = do_POST = _serve

    def _answer(self) -> tuple[str, str]:
        """Kind and text of the answer. Raises `Refused` or `Gone`."""
        body = self._body() if self.command == "POST" else b""  # before all: an answer may be lost with what is unread
        key, owner = self._key(), self.server.owner
        route = f"{self.command} {self.path.split('?')[0].rstrip('/')}"
        if route == "GET /v1/models":
            return "application/json", json.dumps(MODELS)
        if route != "POST /v1/chat/completions":
            raise Refused(
                f"{self.command} {self.path[:100]} is not served; there are POST /v1/chat/completions and GET "
                "/v1/models.",
                404,
            )
        request = read_request(parsed(body))
        self.call = Call(owner.trajectory_of(key), request, self.connection)
        reply = owner.wait(self.call, key)
        if request.stream:
            return "text/event-stream", events(request, reply)
        return "application/json", json.dumps(completion(request, reply))

    def _key(self) -> str:
        scheme, _, key = self.headers.get("Authorization", "").strip().partition(" ")
        key = key.strip() if scheme.lower() == "bearer" else scheme
        self.server.owner.trajectory_of(key)
        return key

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "").strip()
        closes, self.close_connection = self.close_connection, True  # where the body is left unread
        if not (length.isascii() and length.isdigit()):
            raise Refused("The request needs a Content-Length.", 411)
        if len(length) > 20 or int(length) > MOST_BYTES:
            raise Refused(f"The body has {length[:20]} bytes; at most {MOST_BYTES} are read.", 413)
        body = self.rfile.read(int(length))
        self.close_connection = closes
        return body

    def _send(self, status: int, kind: str, text: str) -> bool:
        """Answer; False where a call's client is gone. Raises `OSError` where it goes meanwhile."""
        if self.call is not None and not self.call.is_awaited():
            self.close_connection = True
            return False
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()
        return True

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are counted as turns, not printed."""


def parsed(body: bytes) -> Any:
    """The value of a JSON body. Raises `Refused`."""
    try:
        given = json.loads(body)
        json.dumps(given, ensure_ascii=False).encode()  # half a surrogate pair is no text for a tokenizer
        return given
    except (ValueError, RecursionError) as problem:
        raise Refused(f"The body is not valid JSON ({type(problem).__name__}: {problem}).") from None
