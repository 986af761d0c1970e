"""A server on this machine's own address that takes chat requests and waits for the trainer to answer them.

The standard library's: it has one client, on the loopback, and no load but the model's. Each connection has a thread,
which reads a request, lays it into the inbox and waits; torch is never touched here.
"""

from __future__ import annotations

import json
import queue
import secrets
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import Any

from strop.agents.chat_api import ChatReply, ChatRequest, Refused, completion, events, read_request

MOST_BYTES = 16 * 2**20
IDLE_SECONDS = 60.0
MODELS = {"object": "list", "data": [{"id": "policy", "object": "model", "created": 0, "owned_by": "strop"}]}


@dataclass(slots=True)
class Call:
    """A request that waits for its answer."""

    trajectory: int
    request: ChatRequest
    arrived: float = field(default_factory=time.monotonic)
    answer: ChatReply | Refused | None = None
    done: threading.Event = field(default_factory=threading.Event)

    def give(self, answer: ChatReply | Refused) -> None:
        self.answer = answer
        self.done.set()


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

    def ask(self, key: str, request: ChatRequest) -> ChatReply:
        """Wait for the trainer's answer. Raises `Refused`."""
        call = Call(self.trajectory_of(key), request)
        self.inbox.put(call)
        while not call.done.wait(0.5):
            self.trajectory_of(key)
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

    def do_GET(self) -> None:
        self._serve(self._get)

    def do_POST(self) -> None:
        self._serve(self._post)

    def _serve(self, work: Any) -> None:
        try:
            kind, text = work()
            self._send(200, kind, text)
        except Refused as refused:
            self._send(refused.status, "application/json", json.dumps(refused.body()))

    def _get(self) -> tuple[str, str]:
        self._key()
        if self.path.split("?")[0].rstrip("/") != "/v1/models":
            raise self._nothing_here()
        return "application/json", json.dumps(MODELS)

    def _post(self) -> tuple[str, str]:
        body = self._body()  # first of all: an answer before it is read may be lost with the connection
        key = self._key()
        if self.path.split("?")[0].rstrip("/") != "/v1/chat/completions":
            raise self._nothing_here()
        request = read_request(parsed(body))
        reply = self.server.owner.ask(key, request)
        if request.stream:
            return "text/event-stream", events(request, reply)
        return "application/json", json.dumps(completion(request, reply))

    def _nothing_here(self) -> Refused:
        return Refused(
            f"{self.command} {self.path[:100]} is not served; there are POST /v1/chat/completions and GET /v1/models.",
            404,
        )

    def _key(self) -> str:
        key = self.headers.get("Authorization", "").removeprefix("Bearer ").strip()
        self.server.owner.trajectory_of(key)
        return key

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        closes, self.close_connection = self.close_connection, True  # where the body is left unread
        if not length.isdigit():
            raise Refused("The request needs a Content-Length.", 411)
        if int(length) > MOST_BYTES:
            raise Refused(f"The body has {length} bytes; at most {MOST_BYTES} are read.", 413)
        body = self.rfile.read(int(length))
        self.close_connection = closes
        return body

    def _send(self, status: int, kind: str, text: str) -> None:
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

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
