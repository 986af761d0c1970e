"""A client that does not wait for its answer: what it never saw is not learned, and it may ask again."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from urllib.parse import urlsplit

from tests.agents.test_agent_program import QUESTION, Noting, ask, post, run
from tests.support.conversations import asked
from tests.support.templates import KINDS, tokenizer_with

from strop.agents import AgentProgram
from strop.agents.attempt import Attempt, nobody_waits
from strop.agents.chat_api import ChatRequest
from strop.agents.chat_server import Call
from strop.agents.program import make_agent_turns
from strop.agents.recorded import Asked, Recorded
from strop.data.options import TokenizeOptions
from strop.online.sampling import turn_metrics
from strop.records import Example
from strop.rollout import SamplingParams


@contextlib.contextmanager
def begun(endpoint, messages):
    """A request on a connection of its own, which is closed unanswered."""
    address = urlsplit(endpoint.base_url)
    body = json.dumps({"model": "m", "messages": messages}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {endpoint.api_key}\r\n"
    with socket.create_connection((address.hostname, address.port)) as wire:
        wire.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        yield


class Impatient:
    """A model that answers the request number `lost` only when its client has gone."""

    def __init__(self, lost):
        self.lost, self.asked = lost, 0
        self.sampling, self.closed = threading.Event(), threading.Event()

    def say(self, text, place):
        self.asked += 1
        if self.asked - 1 != self.lost:
            return f"turn {self.asked}"
        self.sampling.set()
        assert self.closed.wait(30)
        return "unseen"

    def give_up(self, endpoint, messages):
        with begun(endpoint, messages):
            assert self.sampling.wait(30)
        self.closed.set()


def text_of(trajectory, tokenizer):
    return [tokenizer.decode(s.prompt_ids + s.ids) for s in trajectory.conversation.stretches]


def test_an_answer_that_nobody_saw_is_asked_for_again_with_the_same_random_numbers():
    model = Impatient(lost=1)

    def agent(endpoint, row):
        first = ask(endpoint)["message"]
        messages = [*QUESTION, first, {"role": "user", "content": "and?"}]
        model.give_up(endpoint, messages)
        second = ask(endpoint, messages)["message"]
        ask(endpoint, [*messages, second, {"role": "user", "content": "so?"}])
        return {"turn_rewards": [1.0, 2.0, 4.0]}

    (trajectory,), engine, lines = run(agent, model.say, n=1, gather_seconds=0.0)
    assert trajectory.reason == "stop", trajectory.problem
    (text,) = text_of(trajectory, engine.tokenizer)
    assert "unseen" not in text and text.count("and?") == 1
    assert [turn.message["content"] for turn in trajectory.conversation.turns] == [
        "turn 1", "and?", "turn 3", "so?", "turn 4",
    ]  # fmt: skip
    assert trajectory.turn_rewards == [1.0, 2.0, 4.0]
    assert [params.prompt_numbers for params in engine.params] == [(0,), (1,), (1,), (2,)]
    assert engine.seen[1] == engine.seen[2] and len({p.max_new_tokens for p in engine.params[1:3]}) == 1
    assert len(lines) == 1 and "closed the connection" in lines[0]
    assert turn_metrics([trajectory])["turns/unseen"].total == 1.0


def test_what_a_client_is_told_that_is_gone_holds_no_other_request():
    """Each that raises one exception adds its frames to it, with the request and the connection in them."""
    here, there = socket.socketpair()
    with here, there:
        attempt, request = Attempt(0, Example([], [[]]), Recorded(None, "template", 10), 9), ChatRequest([])
        calls = [Call(0, request, here) for _ in range(2)]
        for call in calls:
            attempt.take_back(Asked(request, None, 1, [], "", lambda: None, call=call))
    assert [call.answer.status for call in calls] == [408, 408] and attempt.unseen == 2
    assert calls[0].answer is not calls[1].answer and nobody_waits() is not nobody_waits()


def test_a_first_request_and_a_branch_leave_nothing_behind():
    for lost in (0, 2):
        model = Impatient(lost)

        def agent(endpoint, row, model=model, lost=lost):
            if lost == 0:
                model.give_up(endpoint, QUESTION)
            first = ask(endpoint)["message"]
            for word in ("and?", "or?"):
                messages = [*QUESTION, first, {"role": "user", "content": word}]
                if lost == 2 and word == "or?":
                    model.give_up(endpoint, messages)
                ask(endpoint, messages)

        (trajectory,), engine, _ = run(agent, model.say, n=1, gather_seconds=0.0)
        assert trajectory.reason == "stop", trajectory.problem
        texts = text_of(trajectory, engine.tokenizer)
        assert len(texts) == 2 and "unseen" not in str(texts), texts
        assert [turn.message["role"] for turn in trajectory.conversation.turns].count("assistant") == 3
        assert trajectory.conversation.rewritten == 0


def test_an_agent_that_leaves_without_its_answer():
    """It is not learned from what it did not see; one that saw nothing is no completion."""
    model = Impatient(lost=1)

    def agent(endpoint, row):
        first = ask(endpoint)["message"]
        model.give_up(endpoint, [*QUESTION, first, {"role": "user", "content": "and?"}])
        return {"turn_rewards": [3.0]}

    (trajectory,), engine, _ = run(agent, model.say, n=1, gather_seconds=0.0)
    assert trajectory.reason == "stop" and trajectory.turn_rewards == [3.0], trajectory.problem
    assert "unseen" not in str(text_of(trajectory, engine.tokenizer))


def test_a_request_that_is_closed_before_the_model_is_asked_is_not_answered():
    """While it waits for other agents' requests."""
    closed = threading.Event()

    def agent(endpoint, row):
        with lock:
            number = len(started)
            started.append(number)
        if number == 0:
            with begun(endpoint, [{"role": "user", "content": "never"}]):
                pass
            closed.set()
        assert closed.wait(30)
        ask(endpoint)

    started, lock = [], threading.Lock()
    everyone, engine, lines = run(agent, n=2, gather_seconds=5.0)
    assert [t.reason for t in everyone] == ["stop", "stop"]
    assert "never" not in str([engine.tokenizer.decode(ids) for contexts in engine.seen for ids in contexts])
    assert [params.prompt_numbers for params in engine.params] == [(0, 64)]
    assert "closed the connection" in lines[0]


def test_a_client_that_never_waits_has_an_end():
    """Its lost requests count among those that an agent may ask."""
    tokenizer, stop_ids = tokenizer_with(KINDS["gathered"])
    asking = threading.Semaphore(0)

    class Slow(Noting):
        def generate(self, *given, **options):
            asking.release()
            assert gone.wait(30)
            gone.clear()
            return super().generate(*given, **options)

    gone = threading.Event()

    def agent(endpoint, row):
        for _ in range(3):
            with begun(endpoint, QUESTION):
                assert asking.acquire(timeout=30)
            gone.set()
        gone.set()
        codes.append(post(endpoint).json()["error"]["code"])

    codes = []
    turns = make_agent_turns(
        AgentProgram(agent, most_calls=3, gather_seconds=0.0), tokenizer, TokenizeOptions(), past="template",
        can_fork=True, stop_ids=stop_ids, positions=None, say=lambda line: None,
    )  # fmt: skip
    turns.has_worked = True
    ((trajectory,),) = turns.run(Slow(tokenizer, lambda text, place: "so"), [asked(tokenizer)], 1,
                                 SamplingParams(max_new_tokens=50, seed=1))  # fmt: skip
    assert trajectory.reason == "failed" and trajectory.unseen == 3 and codes == ["too_many_calls"]
