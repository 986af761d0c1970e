"""JSON over HTTP where every call ends within its time limit, with a named error.

A socket timeout alone bounds one `recv`, so a server that sends a byte now and then would hold the caller for ever;
here a watchdog closes the connection when the time for the whole call is over. Standard library only.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
from typing import Any
from urllib.parse import urlsplit

from strop.errors import ConfigError, RolloutError


class HttpStatusError(RolloutError):
    """The server answered with an HTTP error status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class HttpConnectionError(RolloutError):
    """No connection could be made, or it broke before the answer was complete."""


class JsonClient:
    """Calls one server.

    Args:
        base_url: such as "http://127.0.0.1:8000".
        api_key: sent as a bearer token where given.

    Raises:
        ConfigError: not an http or https URL.
    """

    def __init__(self, base_url: str, api_key: str | None = None) -> None:
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"The server's address must look like 'http://127.0.0.1:8000'; got {base_url!r}.")
        self.base_url = base_url.rstrip("/")
        self._parts = parts
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._open: set[_Call] = set()
        self._lock = threading.Lock()

    def get(self, path: str, timeout_s: float) -> Any:
        """The JSON answer to a GET; see `post`."""
        return self._call("GET", path, None, timeout_s, False)

    def post(self, path: str, body: dict[str, Any], timeout_s: float, *, text_too: bool = False) -> Any:
        """The JSON answer to a POST; None where the answer is empty.

        Args:
            timeout_s: seconds for the whole call, connecting and reading included.
            text_too: whether an answer may also be plain text, which is then returned as it is.

        Raises:
            HttpStatusError: a status of 400 or above; the message contains the server's text.
            HttpConnectionError: no connection, or one that broke.
            RolloutError: no answer in time, or something that is not JSON.
        """
        return self._call("POST", path, body, timeout_s, text_too)

    def abort(self) -> None:
        """End all calls in progress (they raise)."""
        with self._lock:
            calls = list(self._open)
        for call in calls:
            call.end()

    def _call(self, method: str, path: str, body: dict[str, Any] | None, timeout_s: float, text_too: bool) -> Any:
        call = _Call(self._parts, timeout_s)
        with self._lock:
            self._open.add(call)
        url = self.base_url + path
        try:
            status, payload = call.run(method, self._parts.path.rstrip("/") + path, body, self._headers)
        except (OSError, http.client.HTTPException) as error:
            if call.expired or isinstance(error, TimeoutError):
                raise RolloutError(
                    f"{method} {url} gave no complete answer within {timeout_s:g} s: the server stalls or is "
                    "overloaded. Look at its log, or raise the time limit (vllm_server_timeout)."
                ) from error
            raise HttpConnectionError(
                f"{method} {url} failed: {type(error).__name__}: {error}. The server is not running, or died while "
                "it answered. Look at its log and start it again."
            ) from error
        finally:
            with self._lock:
                self._open.discard(call)
        text = payload.decode("utf-8", "replace")
        if status >= 400:
            words = _words_of(text)[:500] or "(no text)"
            advice = " Look at the server's log; it may have to be started again." if status >= 500 else ""
            raise HttpStatusError(f"{method} {url} was refused with status {status}: {words}{advice}", status)
        if not text.strip():
            return None
        try:
            return json.loads(text)
        except ValueError as error:
            if text_too:
                return text
            raise RolloutError(
                f"{method} {url} was answered with something that is not JSON: {text[:200]!r}. "
                "Is this the address of an OpenAI-compatible vLLM server?"
            ) from error


def _words_of(text: str) -> str:
    """The message of an error in OpenAI's form or FastAPI's, other texts as they are."""
    try:
        found = json.loads(text)
    except ValueError:
        return text
    if not isinstance(found, dict):
        return text
    error = found.get("error", found)
    words = (error.get("message") or error.get("detail")) if isinstance(error, dict) else error
    return str(words) if words else text


class _Call:
    """One request with its own connection and watchdog."""

    def __init__(self, parts: Any, timeout_s: float) -> None:
        connection = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = connection(parts.hostname, parts.port, timeout=timeout_s)
        self._timeout_s = timeout_s
        self._socket: socket.socket | None = None  # http.client forgets it while it reads a body without a length
        self.expired = False
        self._ended = False

    def run(self, method: str, path: str, body: dict[str, Any] | None, headers: dict[str, str]) -> tuple[int, bytes]:
        """Status and body of the answer."""
        watchdog = threading.Timer(self._timeout_s, self._expire)
        watchdog.daemon = True
        watchdog.start()
        try:
            self._connection.connect()
            self._socket = self._connection.sock
            if self._ended:
                raise ConnectionAbortedError("the call was ended")
            self._connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = self._connection.getresponse()
            payload = response.read()
        except (AttributeError, ValueError) as error:
            # http.client loses its socket under the reader's hands when the watchdog or `abort` closes it.
            raise ConnectionAbortedError(f"the connection was closed ({error})") from error
        finally:
            watchdog.cancel()
            self._connection.close()
        if self.expired:  # a body without a length looks complete when its connection is closed
            raise TimeoutError
        return response.status, payload

    def end(self) -> None:
        """Close the connection under whoever reads from it."""
        self._ended = True
        if self._socket is not None:
            with contextlib.suppress(OSError):  # closed already
                self._socket.shutdown(socket.SHUT_RDWR)

    def _expire(self) -> None:
        self.expired = True
        self.end()
