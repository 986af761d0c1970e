"""Agents that do what no agent should: whatever they send, the run goes on, and what is learned is what was sampled."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from urllib.parse import urlsplit

import pytest
from tests.agents.test_agent_program import CALL, CLIENT, QUESTION, TOOL, ask, post, run, written
from tests.support.conversations import Letters


def agent_of(*works):
    """An agent that does one thing after another, and ends with a plain question; what they give are its columns."""

    def agent(endpoint, row):
        found = [work(endpoint) for work in works]
        return {"found": found, "last": ask(endpoint)["message"]["content"]}

    return agent


def refusals(*bodies):
    """What each body is refused with: status and words."""
    seen = []

    def agent(endpoint, row):
        for body in bodies:
            content = body if isinstance(body, bytes) else json.dumps({"messages": QUESTION, **body}).encode()
            answer = post(endpoint, content=content)
            seen.append((answer.status_code, answer.json()["error"]["message"]))
        return {"last": ask(endpoint)["message"]["content"]}

    (trajectory,), engine, _ = run(agent, n=1, gather_seconds=0.0)
    assert trajectory.extra["last"] == "so" and trajectory.reason == "stop", (trajectory.problem, seen)
    assert len(engine.seen) == 1
    return seen


def test_what_would_need_another_distribution_is_refused():
    seen = refusals(
        {"n": 2}, {"tool_choice": "required", "tools": [TOOL]},
        {"tool_choice": {"type": "function", "function": {"name": "add"}}, "tools": [TOOL]},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}},
        {"logprobs": True, "top_logprobs": 5}, {"logit_bias": {"5": 100}}, {"frequency_penalty": 1.0},
        {"functions": [{"name": "add"}]}, {"parallel_tool_calls": False, "tools": [TOOL]},
    )  # fmt: skip
    assert {status for status, _ in seen} == {400}
    named = "n is|tool_choice|tool_choice|response_format|top_logprobs|logit_bias|frequency|functions|parallel"
    assert all(name in said for name, (_, said) in zip(named.split("|"), seen, strict=True)), seen


def test_bodies_that_are_no_requests_are_refused():
    deep = b'{"messages": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    seen = refusals(
        b" ", b"null", b"\xff\xfe", b'{"messages": [1]}', b'{"messages": "go"}', deep, {"messages": []},
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        {"messages": [{"role": ["user"], "content": ""}]}, {"messages": [{"role": "user", "content": 3}]},
        {"stop": [""]}, {"max_tokens": -1}, {"max_tokens": "10"},
        {"tools": [{"type": "function", "function": {}}]}, {"tools": {"a": 1}}, {"stream_options": []},
        {"chat_template_kwargs": {"chat_template": "{{ 1 / 0 }}"}}, {"chat_template_kwargs": {"tools": 3}},
        {"messages": [{"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": 3}]}]},
    )  # fmt: skip
    assert {status for status, _ in seen} == {400}, seen


@pytest.mark.parametrize(
    "function",
    [{"parameters": []}, {"parameters": {"properties": {"a": True}}}, {"parameters": None}, {"parameters": "x"}, {}],
)
@pytest.mark.parametrize("kind", ["gathered", "endless"])
def test_schemas_of_any_shape_are_shown_and_calls_are_read(function, kind):
    tool = {"type": "function", "function": {"name": "add", **function}}
    call = (
        CALL
        if kind == "gathered"
        else "\n<tool_call>add\n<arg_key>a</arg_key>\n<arg_value>20</arg_value>\n</tool_call>"
    )

    def agent(endpoint, row):
        return {"calls": ask(endpoint, tools=[tool])["message"].get("tool_calls")}

    (trajectory,), _, _ = run(agent, lambda text, place: call, n=1, kind=kind)
    assert trajectory.reason == "stop", trajectory.problem
    assert json.loads(trajectory.extra["calls"][0]["function"]["arguments"])["a"] == 20


def test_huge_messages_are_a_conversation_or_a_refusal():
    long = "word " * 200_000

    def agent(endpoint, row):
        said = ask(endpoint, [{"role": "user", "content": long}])["message"]["content"]
        most = post(endpoint, [{"role": "user", "content": "x" * (17 * 2**20)}])
        return {"said": said, "status": most.status_code}

    (trajectory,), engine, _ = run(agent, n=1, gather_seconds=0.0)
    assert trajectory.extra == {"said": "so", "status": 413}, trajectory.problem
    assert len(engine.seen[0][0]) > 100_000


def test_ten_at_once_in_one_trajectory_are_ten_turns():
    """From one point and from the beginning, whatever order they arrive in; the budget holds for all together."""

    def agent(endpoint, row):
        first = ask(endpoint)["message"]
        on = [[*QUESTION, first, {"role": "user", "content": f"{i}?"}] for i in range(5)]
        threads = [threading.Thread(target=post, args=(endpoint, m)) for m in [*on, *[QUESTION] * 5]]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    (trajectory,), engine, _ = run(agent, n=1, gather_seconds=0.3)
    assert trajectory.reason == "stop", trajectory.problem
    turns = [turn.message for turn in trajectory.conversation.turns]
    assert [message["role"] for message in turns].count("assistant") == 11
    assert sorted(m["content"] for m in turns if m["role"] == "user") == [f"{i}?" for i in range(5)]
    assert sum(text.count("so<|im_end|>") for text in written(trajectory, engine.tokenizer)) == 11
    assert trajectory.conversation.rewritten == 0
    (trajectory,), engine, _ = run(
        agent, n=1, gather_seconds=0.3, sampling=engine.params[0].__class__(max_new_tokens=30)
    )
    used = sum(len(stretch.ids) for stretch in trajectory.conversation.stretches)
    assert trajectory.reason == "length" and used <= 30


def test_a_stream_ends_in_its_usage_and_may_be_left():
    def left(endpoint):
        """Reads the first bytes of a stream and goes."""
        address = urlsplit(endpoint.base_url)
        body = json.dumps({"messages": QUESTION, "stream": True}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nAuthorization: bearer {endpoint.api_key}\r\n"
        with socket.create_connection((address.hostname, address.port)) as wire:
            wire.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            return wire.recv(15).decode()

    def whole(endpoint):
        answer = post(endpoint, stream=True, stream_options={"include_usage": True}, logprobs=True)
        lines = answer.text.strip().split("\n\n")
        return lines[-1], json.loads(lines[-2].removeprefix("data: "))["usage"]["completion_tokens"]

    (trajectory,), _, _ = run(agent_of(left, whole), n=1, gather_seconds=0.0)
    assert trajectory.reason == "stop", trajectory.problem
    assert trajectory.extra["found"] == ["HTTP/1.1 200 OK", ("data: [DONE]", 3)]


def test_requests_that_are_no_http_cost_themselves():
    def wire(endpoint, *lines):
        connection = http.client.HTTPConnection(urlsplit(endpoint.base_url).netloc, timeout=20)
        connection.putrequest("POST", "/v1/chat/completions", skip_accept_encoding=True)
        for name, value in lines:
            connection.putheader(name, value)
        connection.endheaders()
        status = connection.getresponse().status
        connection.close()
        return status

    def odd(endpoint):
        lengths = ["-1", "1e3", "0x10", "9" * 5000, "²"]
        return [wire(endpoint, ("Content-Length", length.encode("latin-1"))) for length in lengths]

    def methods(endpoint):
        head = {"Authorization": f"Bearer {endpoint.api_key}"}
        return [CLIENT.request(name, f"{endpoint.base_url}/chat/completions", headers=head).status_code
                for name in ("PUT", "DELETE")]  # fmt: skip

    def nothing(endpoint):
        address = urlsplit(endpoint.base_url)
        for sent in (b"", b"\x00\x01\x02\r\n\r\n", b"POST / HTTP/1.1\r\nContent-Length: 50\r\n\r\n{"):
            with socket.create_connection((address.hostname, address.port)) as raw:
                raw.sendall(sent)

    (trajectory,), _, _ = run(agent_of(odd, methods, nothing), n=1, gather_seconds=0.0)
    assert trajectory.reason == "stop", trajectory.problem
    assert trajectory.extra["found"] == [[411, 411, 411, 413, 411], [501, 501], None]


def test_histories_that_never_were_are_conversations_of_their_own():
    """Turns that the model did not say, tools that nobody called, two histories with one beginning."""
    call = {"id": "x", "type": "function", "function": {"name": "add", "arguments": "not JSON"}}
    histories = [
        [*QUESTION, {"role": "assistant", "content": "so"}, {"role": "assistant", "content": "so"}, *QUESTION],
        [*QUESTION, {"role": "assistant", "tool_calls": [call, call]}, {"role": "tool", "content": "1"}],
        [{"role": "tool", "tool_call_id": "none", "content": "1"}],
        [{"role": "system", "content": "s"}, {"role": "system", "content": "t"}, *QUESTION],
    ]

    def agent(endpoint, row):
        return {"statuses": [post(endpoint, history, tools=[TOOL]).status_code for history in [*histories, QUESTION]]}

    (trajectory,), engine, _ = run(agent, n=1, gather_seconds=0.0)
    assert trajectory.reason == "stop", trajectory.problem
    said = written(trajectory, engine.tokenizer)
    assert said == ["so<|im_end|>"] * len([s for s in trajectory.extra["statuses"] if s == 200]) and len(said) >= 4


def test_what_an_agent_returns_may_be_anything(tmp_path):
    """It becomes a column; samples.jsonl has it as text where JSON cannot hold it."""
    from tests.online.test_agent_program import build

    def agent(endpoint, row):
        ask(endpoint)
        return {"odd": {1, 2}, 3: object(), "self": agent, "nan": float("nan"), "bytes": b"\xff"}

    from strop.agents import AgentProgram

    trainer = build(tmp_path, trainer={"rollout_func": AgentProgram(agent)}, max_steps=1, logging_steps=1)
    trainer._generator = Letters(trainer.processing_class, lambda text, place: "ab"[place % 2] * (place + 1))
    trainer.train()
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert len(rows) == 4 and set(rows[0]["columns"]) >= {"odd", "3", "self", "nan", "bytes"}
