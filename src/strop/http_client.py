"""JSON over HTTP where every call ends within its time limit, with a named error, and reads no more than it may.

The client is httpx2, which huggingface_hub brings. What it does not bound is bounded here: a time limit of its own
holds for one connect, read or write, so a server that sends a byte now and then would hold the caller for ever; here
the whole call runs under one deadline, in an event loop of the process, and the caller waits for it. A body is counted
while it is read. Only a status of 2xx is success. Keys never stand in an error.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import json
import ssl
from concurrent.futures import CancelledError, Future
from typing import Any, NoReturn
from urllib.parse import urlsplit

import httpx2

from strop.errors import ConfigError, StropError
from strop.event_loop import lasting_loop

MOST_BYTES = 1 << 28
"""Bytes of an answer, unless a caller says less."""
_SHOWN = 500
"""Characters of a server's words in an error."""


class HttpError(StropError, RuntimeError):
    """A call that brought no answer."""


class HttpStatusError(HttpError):
    """The server answered with another status than 2xx, a redirect for one."""

    def __init__(self, message: str, status: int, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status, self.retry_after_s = status, retry_after_s


class HttpConnectionError(HttpError):
    """No connection could be made, or it broke before the answer was complete."""


class HttpTimeoutError(HttpError):
    """The call was not over in time."""


class HttpAnswerError(HttpError):
    """The answer is too long, encoded, or not JSON."""


class JsonClient:
    """Calls one server.

    Args:
        base_url: such as "http://127.0.0.1:8000".
        api_key: sent as a bearer token where given.
        most_bytes: an answer that is longer is an error.

    Raises:
        ConfigError: not an http or https URL, or a key that cannot stand in a header.
    """

    def __init__(self, base_url: str, api_key: str | None = None, *, most_bytes: int = MOST_BYTES) -> None:
        parts = _address(base_url)
        if api_key and not (api_key.isascii() and api_key.isprintable() and " " not in api_key):
            raise ConfigError(
                "The API key holds a character that no key has: a space, a line break or a letter outside of ASCII. "
                "Copy it again, without what stands around it."
            )
        self._url, self._most_bytes = base_url.rstrip("/"), most_bytes
        self._secrets = [secret for secret in (api_key, parts.password) if secret]
        self._headers = {"Accept": "application/json", "Accept-Encoding": "identity", "Connection": "close"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._proxies = not _is_this_machine(parts.hostname or "")
        self.base_url = self._masked(self._url)
        self._open: set[Future[Any]] = set()

    def get(self, path: str, timeout_s: float) -> Any:
        """The JSON answer to a GET; see `post`."""
        return self._call("GET", path, None, timeout_s, False)

    def post(self, path: str, body: dict[str, Any], timeout_s: float, *, text_too: bool = False) -> Any:
        """The JSON answer to a POST; None where the answer is empty.

        NaN and Infinity, which Python's own servers write, are let through: who reads a number checks it.

        Args:
            timeout_s: seconds for the whole call, connecting and reading included.
            text_too: whether an answer may also be plain text, which is then returned as it is.

        Raises:
            HttpStatusError: another status than 2xx; the message contains the server's text.
            HttpConnectionError: no connection, or one that broke or was ended by `abort`.
            HttpTimeoutError: no complete answer in time.
            HttpAnswerError: an answer that is too long or not JSON.
        """
        return self._call("POST", path, body, timeout_s, text_too)

    def abort(self) -> None:
        """End all calls in progress (they raise)."""
        for call in list(self._open):
            call.cancel()

    def _call(self, method: str, path: str, body: dict[str, Any] | None, timeout_s: float, text_too: bool) -> Any:
        where = f"{method} {self.base_url}{path}"
        content = None if body is None else json.dumps(body).encode()
        call = lasting_loop("strop-http").start(self._exchange(method, path, content, timeout_s))
        self._open.add(call)
        try:
            status, retry_after_s, payload = call.result()
        except _Unreadable as problem:
            raise HttpAnswerError(f"{where} {problem}.") from None
        except (CancelledError, httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError) as error:
            self._raise_failure(where, timeout_s, error)
        finally:
            call.cancel()  # ends it where an interrupt took the caller away
            self._open.discard(call)
        text = payload.decode("utf-8", "replace")
        if not 200 <= status < 300:
            words = self._shown(_words_of(text)) or "(no text)"
            advice = " Look at the server's log; it may have to be started again." if status >= 500 else ""
            if 300 <= status < 400:
                advice = " That is a redirect, which is not followed: give the address that it leads to."
            raise HttpStatusError(f"{where} was refused with status {status}: {words}{advice}", status, retry_after_s)
        try:
            return json.loads(text) if text.strip() else None
        except (ValueError, RecursionError) as error:
            if text_too:
                return text
            raise HttpAnswerError(
                f"{where} was answered with something that is not JSON ({error}): {self._shown(text)[:200]!r}. "
                "Is this the address of an OpenAI-compatible server?"
            ) from None

    async def _exchange(
        self, method: str, path: str, content: bytes | None, timeout_s: float
    ) -> tuple[int, float | None, bytes]:
        """Status, seconds of Retry-After, and body."""
        headers = self._headers if content is None else {**self._headers, "Content-Type": "application/json"}
        verify = _certificates() if self._url.startswith("https") else False
        client = httpx2.AsyncClient(timeout=None, follow_redirects=False, trust_env=self._proxies, verify=verify)
        async with (
            asyncio.timeout(timeout_s),
            client,
            client.stream(method, self._url + path, content=content, headers=headers) as response,
        ):
            body = await _body(response, self._most_bytes)
        pause = response.headers.get("Retry-After", "")
        return response.status_code, float(pause) if pause.isdecimal() and len(pause) < 6 else None, body

    def _raise_failure(self, where: str, timeout_s: float, error: Exception) -> NoReturn:
        """What a failed call means; without the exception itself, whose text or frames may hold a key."""
        if isinstance(error, TimeoutError):
            raise HttpTimeoutError(
                f"{where} gave no complete answer within {timeout_s:g} s: the server stalls or is overloaded. Look "
                "at its log, or raise the time limit."
            ) from None
        cause: BaseException = error
        while isinstance(inner := cause.__cause__ or cause.__context__, Exception):
            cause = inner  # down to what the system said
        said = "it was ended" if isinstance(error, CancelledError) else f"{type(cause).__name__}: {cause}"
        raise HttpConnectionError(
            f"{where} failed: {self._shown(said)}. The server is not running, or died while it answered. Look at its "
            "log and start it again."
        ) from None

    def _masked(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    def _shown(self, text: str) -> str:
        """Words from outside as they may be shown: no key, no control characters, not too many."""
        return "".join(c if c.isprintable() else " " for c in self._masked(text)[:_SHOWN]).strip()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": set()}


class _Unreadable(Exception):
    """A body that is not read to its end; the text says why."""


async def _body(response: httpx2.Response, most_bytes: int) -> bytes:
    declared = response.headers.get("Content-Length", "0")
    if not declared.isdecimal() or len(declared) > 18 or int(declared) > most_bytes:
        raise _Unreadable(f"announces a body of {declared[:40]} bytes; the most that is read is {most_bytes}")
    if (encoding := response.headers.get("Content-Encoding", "identity").lower()) not in ("identity", ""):
        raise _Unreadable(f"was answered in the encoding {encoding[:40]!r}, which was not asked for")
    pieces, size = [], 0
    async for piece in response.aiter_raw():
        size += len(piece)
        if size > most_bytes:
            raise _Unreadable(f"answers with more than {most_bytes} bytes, the most that is read")
        pieces.append(piece)
    return b"".join(pieces)


def _words_of(text: str) -> str:
    """The message of an error in OpenAI's form or FastAPI's, other texts as they are."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if not isinstance(found, dict):
        return text
    error = found.get("error", found)
    words = (error.get("message") or error.get("detail")) if isinstance(error, dict) else error
    return str(words) if words else text


def _address(base_url: str) -> Any:
    try:
        parts = urlsplit(base_url)
        _ = parts.port  # raises where it is none
        if parts.scheme in ("http", "https") and parts.hostname and base_url.isprintable():
            return parts
    except (ValueError, AttributeError, TypeError):
        pass
    shown = "<an address with a password>" if "@" in str(base_url) else f"{base_url!r}"
    raise ConfigError(f"The server's address must look like 'http://127.0.0.1:8000'; got {shown}.")


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@functools.cache
def _certificates() -> ssl.SSLContext:
    return httpx2.create_ssl_context()
