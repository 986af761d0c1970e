"""A judge behind an OpenAI-compatible chat endpoint (vLLM, llama.cpp, a hosted service).

Nothing is contacted unless this judge is made, and then only the address it was given. Every request has a wall-clock
limit that a server cannot stretch by sending a byte at a time; retries are counted; a server that fails again and
again is not asked any more in the same call.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from strop.errors import ConfigError, RewardError
from strop.http_client import HttpError, HttpStatusError, JsonClient
from strop.rewards.judges import JUDGE_INSTRUCTION, AskingJudge

_RETRIED_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_ANSWER_LIMIT_BYTES = 1 << 20
_LONGEST_PAUSE_SECONDS = 8.0
_ROUNDING = 1e-3
"""How far above 0 a log-probability in half precision may lie."""
_SMALLEST_LOGP = -1e4
_LETTER = re.compile(r"(?<![A-Za-z])([AB])(?![A-Za-z])")


class EndpointJudge(AskingJudge):
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
        problems = []
        try:
            self._client = JsonClient(base_url, api_key, most_bytes=_ANSWER_LIMIT_BYTES)
        except ConfigError as error:
            problems.append(str(error))
        if not timeout_seconds > 0:
            problems.append(f"timeout_seconds is {timeout_seconds!r}; it must be positive")
        if retries < 0 or max_workers < 1 or max_reply_tokens < 1:
            problems.append("retries must be at least 0, max_workers and max_reply_tokens at least 1")
        if problems:
            raise ConfigError.collect("The endpoint judge cannot be set up.", problems)
        self.base_url = self._client.base_url
        self.model = model
        self.instruction = instruction
        self.timeout_seconds = timeout_seconds
        self.retries = retries
        self.max_workers = max_workers
        self.max_reply_tokens = max_reply_tokens
        self.use_logprobs = use_logprobs

    def probabilities_of_a(self, questions: Sequence[str]) -> Sequence[float | None]:
        line = _Line(give_up_after=max(4, self.max_workers))
        pool = ThreadPoolExecutor(min(self.max_workers, len(questions)))
        try:
            answers = list(pool.map(lambda question: self._ask(question, line), questions))
        finally:
            line.closed.set()
            pool.shutdown(wait=True, cancel_futures=True)
        if not line.answered:
            raise RewardError(
                f"The judge at {self.base_url} answered none of {len(questions)} requests; the last problem: "
                f"{line.last_problem}. Check that the server runs and serves the model '{self.model}'."
            )
        return answers

    def _ask(self, question: str, line: _Line) -> float | None:
        """P(A) for one question, or None."""
        request = self._request(question)
        for attempt in range(self.retries + 1):
            if line.closed.is_set():
                break
            pause_s: float | None = None
            try:
                verdict = read_verdict(self._client.post("/chat/completions", request, self.timeout_seconds))
                line.note(None)
                return verdict
            except HttpStatusError as error:
                if error.status not in _RETRIED_STATUS:
                    line.closed.set()
                    raise RewardError(f"The judge at {self.base_url} refuses requests: {error}") from None
                line.note(str(error))
                pause_s = error.retry_after_s
            except (HttpError, MalformedReply) as error:
                line.note(str(error))
            if attempt < self.retries:
                line.closed.wait(min(0.5 * 2**attempt if pause_s is None else pause_s, _LONGEST_PAUSE_SECONDS))
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


class _Line:
    """The connection to a server during one call: closed when nobody shall ask any more."""

    def __init__(self, give_up_after: int) -> None:
        self.closed = threading.Event()
        self.answered = 0
        self.last_problem = "it was given up"
        self._lock = threading.Lock()
        self._give_up_after = give_up_after
        self._failed_in_a_row = 0

    def note(self, problem: str | None) -> None:
        """One request went well, or had a problem; a server that fails again and again is given up."""
        with self._lock:
            self.answered += problem is None
            self._failed_in_a_row = 0 if problem is None else self._failed_in_a_row + 1
            self.last_problem = problem or self.last_problem
            if self._failed_in_a_row >= self._give_up_after:
                self.closed.set()


class MalformedReply(ValueError):
    """A reply that is not in the form of the API, or holds numbers that are none; the text says what."""


def read_verdict(reply: Any) -> float | None:
    """P(A) out of a chat completion: from the first token's log-probabilities if they are there, else from the text.

    The text counts if the only letters A and B that stand alone in it agree.

    Raises:
        MalformedReply: not a chat completion, or log-probabilities that are none.
    """
    try:
        choice = reply["choices"][0]
        tokens = ((choice.get("logprobs") or {}).get("content")) or []
        if tokens:
            odds = _letter_odds(tokens[0].get("top_logprobs") or [])
            if odds is not None:
                return odds
        letters = set(_LETTER.findall(choice["message"]["content"] or ""))
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise MalformedReply(f"an answer that is not a chat completion ({type(error).__name__}: {error})") from None
    return float(letters == {"A"}) if len(letters) == 1 else None


def _letter_odds(alternatives: Sequence[dict[str, Any]]) -> float | None:
    mass = {"A": 0.0, "B": 0.0}
    for alternative in alternatives:
        letter = str(alternative["token"]).strip()
        if letter in mass:
            mass[letter] += math.exp(_log_probability(alternative["logprob"]))
    total = mass["A"] + mass["B"]
    return mass["A"] / total if total > 0 else None


def _log_probability(value: Any) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not -math.inf < value <= _ROUNDING:
        raise MalformedReply(f"a log-probability of {str(value)[:40]}, which is none")
    return float(max(value, _SMALLEST_LOGP))
