"""A judge behind an OpenAI-compatible chat endpoint (vLLM, llama.cpp, a hosted service), by the standard library.

Nothing is contacted unless this judge is made, and then only the address it was given. Every request has a wall-clock
limit that a server cannot stretch by sending a byte at a time; retries are counted; a server that fails again and
again is not asked any more in the same call.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import re
import socket
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from strop.errors import ConfigError, RewardError
from strop.rewards.judges import JUDGE_INSTRUCTION, Judge, Pair, both_orders, judge_question

_RETRIED_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_ANSWER_LIMIT_BYTES = 1 << 20
_LONGEST_PAUSE_SECONDS = 8.0
_LETTER = re.compile(r"(?<![A-Za-z])([AB])(?![A-Za-z])")


class EndpointJudge(Judge):
    """A chat model behind `POST {base_url}/chat/completions`, with both orders averaged.

    P(A) = 1 or 0 as the reply says A or B, or with `use_logprobs` p("A") / (p("A") + p("B")) of its first token;
    P(first wins) = (P(A | first shown as A) + 1 - P(A | first shown as B)) / 2, so that a judge that only likes one
    position gives 0.5. A reply without a clear letter, or a request that failed in the end, is no verdict.

    Args:
        base_url: such as "http://127.0.0.1:8000/v1".
        model: the name that the endpoint knows the model by.
        api_key: sent as a bearer token.
        instruction: what makes an answer better.
        timeout_seconds: wall-clock limit of one request.
        retries: further attempts, after timeouts, broken connections and the statuses 408, 409, 425, 429, 5xx.
        max_workers: requests at the same time.
        max_reply_tokens: room for the reply; more for models that think first.
        use_logprobs: ask for the log-probabilities of the first token.

    Raises:
        ConfigError: the address or a number cannot be used.
        RewardError: (when judging) the endpoint refuses, or no request at all succeeds.
    """

    name = "endpoint_judge"

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key: str | None = None,
        instruction: str = JUDGE_INSTRUCTION,
        timeout_seconds: float = 60.0,
        retries: int = 2,
        max_workers: int = 8,
        max_reply_tokens: int = 16,
        use_logprobs: bool = False,
    ) -> None:
        address = urlsplit(base_url)
        problems = []
        if address.scheme not in ("http", "https") or not address.hostname:
            problems.append(f"base_url is {base_url!r}; it must look like http://127.0.0.1:8000/v1")
        if not timeout_seconds > 0:
            problems.append(f"timeout_seconds is {timeout_seconds!r}; it must be positive")
        if retries < 0 or max_workers < 1 or max_reply_tokens < 1:
            problems.append("retries must be at least 0, max_workers and max_reply_tokens at least 1")
        if problems:
            raise ConfigError.collect("The endpoint judge cannot be set up.", problems)
        self.base_url = base_url
        self.model = model
        self.instruction = instruction
        self.timeout_seconds = timeout_seconds
        self.retries = retries
        self.max_workers = max_workers
        self.max_reply_tokens = max_reply_tokens
        self.use_logprobs = use_logprobs
        self._address = address
        self._headers = {"Content-Type": "application/json", "Connection": "close"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"

    def judge_pairs(self, prompts: Sequence[Any], pairs: Sequence[Pair]) -> Sequence[float | None]:
        questions = [(prompt, first, second) for prompt, (first, second) in zip(prompts, pairs, strict=True)]
        questions += [(prompt, second, first) for prompt, (first, second) in zip(prompts, pairs, strict=True)]
        line = _Line(give_up_after=max(4, self.max_workers))
        pool = ThreadPoolExecutor(min(self.max_workers, len(questions)))
        try:
            answers = list(pool.map(lambda question: self._ask(question, line), questions))
        finally:
            line.close()
            pool.shutdown(wait=True, cancel_futures=True)
        if line.failed == len(questions):
            raise RewardError(
                f"The judge at {self.base_url} answered none of {len(questions)} requests; the last problem: "
                f"{line.last_problem}. Check that the server runs and serves the model '{self.model}'."
            )
        half = len(pairs)
        return both_orders(answers[:half], answers[half:])

    def _ask(self, question: tuple[str, str, str], line: _Line) -> float | None:
        """P(A) for one question, or None."""
        body = json.dumps(self._request(judge_question(self.instruction, *question))).encode()
        for attempt in range(self.retries + 1):
            if line.closed:
                break
            try:
                reply = self._post(body)
            except _Refused as refusal:
                line.close()
                raise RewardError(f"The judge at {self.base_url} refuses requests: {refusal}") from None
            except _Failed as failure:
                line.note(str(failure))
                if attempt < self.retries:
                    line.pause(min(failure.retry_after or 0.5 * 2**attempt, _LONGEST_PAUSE_SECONDS))
                continue
            line.note(None)
            return read_verdict(reply)
        line.count_failed()
        return None

    def _request(self, text: str) -> dict[str, Any]:
        request: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": text}],
            "temperature": 0.0,
            "max_tokens": self.max_reply_tokens,
        }
        if self.use_logprobs:
            request.update(logprobs=True, top_logprobs=20)
        return request

    def _post(self, body: bytes) -> dict[str, Any]:
        kind = http.client.HTTPSConnection if self._address.scheme == "https" else http.client.HTTPConnection
        connection = kind(self._address.hostname or "", self._address.port, timeout=self.timeout_seconds)
        over = threading.Event()
        sockets: list[socket.socket] = []  # http.client lets go of its own reference before the body is read

        def cut() -> None:
            over.set()
            for sock in sockets:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)  # ends a read that is fed byte by byte

        timer = threading.Timer(self.timeout_seconds, cut)
        timer.daemon = True
        timer.start()
        try:
            connection.connect()
            sockets.append(connection.sock)
            path = f"{self._address.path.rstrip('/')}/chat/completions"
            connection.request("POST", path, body, self._headers)
            response = connection.getresponse()
            data = response.read(_ANSWER_LIMIT_BYTES + 1)
        except (OSError, http.client.HTTPException) as error:
            if over.is_set() or isinstance(error, TimeoutError):
                raise _Failed(f"no answer within {self.timeout_seconds:g} seconds") from None
            raise _Failed(f"{type(error).__name__}: {error}") from None
        finally:
            timer.cancel()
            connection.close()
        if over.is_set():
            raise _Failed(f"no answer within {self.timeout_seconds:g} seconds")
        return _read_response(response.status, response.getheader("Retry-After"), data)


class _Line:
    """The state of the connection to a server during one call: how many requests in a row have failed."""

    def __init__(self, give_up_after: int) -> None:
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._give_up_after = give_up_after
        self._in_a_row = 0
        self.failed = 0
        self.last_problem = "it was given up"

    @property
    def closed(self) -> bool:
        return self._closed.is_set()

    def note(self, problem: str | None) -> None:
        with self._lock:
            self._in_a_row = 0 if problem is None else self._in_a_row + 1
            self.last_problem = problem or self.last_problem
            if self._in_a_row >= self._give_up_after:
                self._closed.set()

    def count_failed(self) -> None:
        with self._lock:
            self.failed += 1

    def pause(self, seconds: float) -> None:
        self._closed.wait(seconds)

    def close(self) -> None:
        self._closed.set()


class _Failed(Exception):
    """An attempt failed in a way that may pass."""

    def __init__(self, text: str, retry_after: float | None = None) -> None:
        super().__init__(text)
        self.retry_after = retry_after


class _Refused(Exception):
    """The server says that the request itself is wrong; asking again is pointless."""


def read_verdict(reply: dict[str, Any]) -> float | None:
    """P(A) out of a chat completion: from the first token's log-probabilities if they are there, else from the text.

    The text counts if the only letters A and B that stand alone in it agree.
    """
    try:
        choice = reply["choices"][0]
        tokens = ((choice.get("logprobs") or {}).get("content")) or []
        if tokens:
            odds = _letter_odds(tokens[0].get("top_logprobs") or [])
            if odds is not None:
                return odds
        letters = set(_LETTER.findall(choice["message"]["content"] or ""))
    except (KeyError, IndexError, TypeError, AttributeError):
        return None
    return float(letters == {"A"}) if len(letters) == 1 else None


def _letter_odds(alternatives: Sequence[dict[str, Any]]) -> float | None:
    mass = {"A": 0.0, "B": 0.0}
    for alternative in alternatives:
        letter = str(alternative["token"]).strip()
        if letter in mass:
            mass[letter] += math.exp(float(alternative["logprob"]))
    total = mass["A"] + mass["B"]
    return mass["A"] / total if total > 0 else None


def _read_response(status: int, retry_after: str | None, data: bytes) -> dict[str, Any]:
    shown = data[:200].decode("utf-8", "replace").strip()
    if status in _RETRIED_STATUS:
        pause = float(retry_after) if retry_after and retry_after.isdigit() else None
        raise _Failed(f"status {status}: {shown}", pause)
    if status != 200:
        raise _Refused(f"status {status}: {shown}")
    if len(data) > _ANSWER_LIMIT_BYTES:
        raise _Failed(f"an answer of more than {_ANSWER_LIMIT_BYTES} bytes")
    try:
        reply = json.loads(data)
    except ValueError:
        raise _Failed(f"an answer that is not JSON: {shown}") from None
    if not isinstance(reply, dict):
        raise _Failed(f"an answer that is not an object: {shown}")
    return reply
