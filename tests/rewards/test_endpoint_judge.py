from __future__ import annotations

import contextlib
import json
import math
import threading
import time
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from tests.support.ports import reserved_port

from strop.errors import ConfigError, RewardError
from strop.rewards.endpoint_judge import EndpointJudge, MalformedReply, read_verdict


class Stub(BaseHTTPRequestHandler):
    """A chat endpoint that prefers the answer with more letters, or misbehaves as `server.trouble` says."""

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append((self.path, dict(self.headers), request))
            number = len(self.server.requests)
        trouble = self.server.trouble(number)
        if trouble == "stall":
            self.server.stop.wait(30)
            return
        if trouble == "drop":
            return
        if trouble == "trickle":
            self.send_response(200)
            self.send_header("Content-Length", "1000000")
            self.end_headers()
            with contextlib.suppress(OSError):
                while not self.server.stop.is_set():
                    self.wfile.write(b" ")
                    time.sleep(0.02)
            return
        if isinstance(trouble, int):
            return self.answer(trouble, b"busy")
        if isinstance(trouble, bytes):
            return self.answer(200, trouble)
        if trouble == "redirect":
            self.send_response(307)
            self.send_header("Location", self.path)
            self.send_header("Content-Length", "0")
            return self.end_headers()
        if trouble == "a length of 1e15":
            self.send_response(200)
            self.send_header("Content-Length", str(10**15))
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(b" " * 1000)
            return
        if trouble == "a body without end":
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                while not self.server.stop.is_set():
                    self.wfile.write(b" " * (1 << 20))
            return
        if trouble == "echo":
            return self.answer(400, f"no such key: {self.headers['Authorization']}".encode())
        text = request["messages"][0]["content"]
        a, b = text.split("### Answer A\n")[1].split("\n\n### Answer B\n")
        letter = trouble or ("A" if len(a) > len(b.split("\n\nWhich")[0]) else "B")
        self.answer(200, json.dumps({"choices": [{"message": {"content": letter}}]}).encode())

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if status == 429:
            self.send_header("Retry-After", "0")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def stub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Stub)
    server.daemon_threads, server.block_on_close = True, False
    server.requests, server.lock, server.stop = [], threading.Lock(), threading.Event()
    server.trouble = lambda number: None
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.stop.set()
    server.shutdown()
    server.server_close()


def judge(stub, **settings):
    return EndpointJudge(f"http://127.0.0.1:{stub.server_port}/v1", "my-model", **settings)


def test_both_orders_are_asked_and_the_request_is_in_form(stub):
    made = judge(stub, api_key="hush")
    assert made.compare(["p", "q"], [("long one", "b"), ("c", "long too")]) == [0, 1]
    assert len(stub.requests) == 4
    path, headers, request = stub.requests[0]
    assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer hush"
    assert request["model"] == "my-model" and request["temperature"] == 0.0 and request["max_tokens"] == 16
    assert "logprobs" not in request
    assert "### Request\np\n" in request["messages"][0]["content"] or "q" in request["messages"][0]["content"]


def test_a_judge_that_only_likes_one_position_has_no_preference(stub):
    stub.trouble = lambda number: "A"
    assert judge(stub).probabilities(["p"], [("x", "yy")]) == [0.5]
    assert judge(stub).compare(["p"], [("x", "yy")]) == [None]


def test_an_unclear_reply_is_no_verdict(stub):
    stub.trouble = lambda number: "Both A and B are fine." if number == 1 else None
    assert judge(stub, max_workers=1).compare(["p", "q"], [("x", "yy"), ("x", "yy")]) == [None, 1]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_passing_trouble_is_retried(stub, status, monkeypatch):
    monkeypatch.setattr("strop.rewards.endpoint_judge._LONGEST_PAUSE_SECONDS", 0.01)
    stub.trouble = lambda number: status if number % 2 else None
    assert judge(stub, max_workers=1).compare(["p"], [("x", "yy")]) == [1]
    assert len(stub.requests) == 4


HOSTILE = {
    "not JSON": b"not json",
    "a list": b"[1]",
    "2 MiB": b"x" * (1 << 21),
    "deep JSON": b"[" * 100_000,
    "a number of 5,000 digits": b'{"choices": ' + b"1" * 5000 + b"}",
    "no UTF-8": b"\xff\xfe\x00",
    "NaN": b'{"choices": [{"message": {"content": "A"}, "logprobs": NaN}]}',
    "NaN as text": b'{"choices": [{"message": {"content": "A"}, "logprobs": {"content": [{"top_logprobs": '
    b'[{"token": "A", "logprob": "nan"}]}]}}]}',
    "log-probability 1e999": b'{"choices": [{"message": {"content": "A"}, "logprobs": {"content": [{"top_logprobs": '
    b'[{"token": "A", "logprob": 1e999}]}]}}]}',
    "log-probability 800": b'{"choices": [{"message": {"content": "A"}, "logprobs": {"content": [{"top_logprobs": '
    b'[{"token": "A", "logprob": 800}, {"token": "B", "logprob": 800}]}]}}]}',
    "log-probability true": b'{"choices": [{"message": {"content": "A"}, "logprobs": {"content": [{"top_logprobs": '
    b'[{"token": "A", "logprob": true}]}]}}]}',
    "no choices": b'{"choices": []}',
    "log-probabilities of another kind": b'{"choices": [{"message": {"content": "A"}, "logprobs": 5}]}',
}
TROUBLES = ["stall", "trickle", "drop", 500, "a length of 1e15", "a body without end", *HOSTILE]


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_server_that_never_answers_well_is_named_in_bounded_time(stub, trouble, monkeypatch):
    monkeypatch.setattr("strop.rewards.endpoint_judge._LONGEST_PAUSE_SECONDS", 0.01)
    stub.trouble = lambda number: HOSTILE.get(trouble, trouble)
    with pytest.raises(RewardError) as caught:
        judge(stub, timeout_seconds=0.3, retries=1, max_workers=4).compare(["p"] * 50, [("x", "yy")] * 50)
    assert "answered none of 100 requests" in str(caught.value) and "Check that the server runs" in str(caught.value)
    assert len(stub.requests) < 20  # it stopped asking


def test_some_failures_are_no_verdicts(stub, monkeypatch):
    monkeypatch.setattr("strop.rewards.endpoint_judge._LONGEST_PAUSE_SECONDS", 0.01)
    stub.trouble = lambda number: 500 if number == 1 else None
    made = judge(stub, retries=0, max_workers=1)
    assert made.compare(["p", "q"], [("x", "yy"), ("x", "yy")]) == [None, 1]


@pytest.mark.parametrize("status", [400, 401, 404])
def test_a_refusal_is_not_retried(stub, status):
    stub.trouble = lambda number: status
    with pytest.raises(RewardError, match=rf"refuses requests: .*status {status}: busy"):
        judge(stub, max_workers=1).compare(["p"] * 20, [("x", "yy")] * 20)
    assert len(stub.requests) == 1


def test_a_redirect_is_a_refusal(stub):
    stub.trouble = lambda number: "redirect"
    with pytest.raises(RewardError, match=r"refuses requests: .*status 307.*redirect, which is not followed"):
        judge(stub, max_workers=1).compare(["p"], [("x", "yy")])
    assert len(stub.requests) == 1


def test_a_key_that_the_server_echoes_is_masked(stub):
    key, stub.trouble = "sk-hush", lambda number: "echo"
    with pytest.raises(RewardError, match=r"no such key: Bearer \*\*\*") as caught:
        judge(stub, max_workers=1, api_key=key).compare(["p"], [("x", "yy")])
    assert key not in "".join(traceback.format_exception(caught.value))


def test_nobody_listens():
    with reserved_port() as port:
        made = EndpointJudge(f"http://127.0.0.1:{port}/v1", "m", retries=0, timeout_seconds=60.0)
        with pytest.raises(RewardError, match="ConnectionRefusedError"):
            made.compare(["p"], [("a", "b")])


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("A", 1.0),
        ("**B**", 0.0),
        ("Answer A.", 1.0),
        ("The better one is: B", 0.0),
        ("A or B", None),
        ("neither", None),
        ("Absolutely", None),
        ("", None),
        (None, None),
    ],
)
def test_verdicts_in_words(text, verdict):
    assert read_verdict({"choices": [{"message": {"content": text}}]}) == verdict


def test_verdicts_by_log_probabilities(stub):
    def reply(*pairs):
        top = [{"token": token, "logprob": math.log(p)} for token, p in pairs]
        choice = {"message": {"content": "B"}, "logprobs": {"content": [{"token": "B", "top_logprobs": top}]}}
        return {"choices": [choice]}

    assert read_verdict(reply(("B", 0.5), (" A", 0.2), ("A", 0.05), ("C", 0.1))) == pytest.approx(0.25 / 0.75)
    assert read_verdict(reply(("C", 0.5))) == 0.0
    judge(stub, use_logprobs=True).compare(["p"], [("a", "b")])
    assert stub.requests[0][2]["logprobs"] is True and stub.requests[0][2]["top_logprobs"] == 20


@pytest.mark.parametrize("reply", [{}, {"choices": []}, {"choices": [{}]}, {"choices": [None]}, {"choices": 5}])
def test_malformed_replies_are_failures(reply):
    with pytest.raises(MalformedReply):
        read_verdict(reply)


def test_wrong_settings_are_listed_together():
    with pytest.raises(ConfigError) as caught:
        EndpointJudge("localhost:8000", "m", timeout_seconds=0, retries=-1)
    said = str(caught.value)
    assert "must look like 'http://127.0.0.1:8000'" in said and "timeout_seconds is 0" in said and "retries" in said
