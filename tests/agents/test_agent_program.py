"""Agents behind the chat server: what they are given and answered, and what becomes of those that fail."""

from __future__ import annotations

import asyncio
import http.client
import json
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest
from tests.support.conversations import QUESTION, Script, asked
from tests.support.patience import with_patience
from tests.support.templates import KINDS, tokenizer_with

from strop.agents import AgentProgram
from strop.agents.program import make_agent_turns
from strop.data.options import TokenizeOptions
from strop.errors import ConfigError, RolloutError
from strop.rollout import SamplingParams

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 20, "b": 22}}\n</tool_call>'
TOOL = {
    "type": "function",
    "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}},
}
CLIENT = httpx2.Client(trust_env=False, timeout=60)
PARAMS = SamplingParams(max_new_tokens=200, seed=1)


class Noting(Script):
    """A `Script` that keeps what it was asked to sample with."""

    def generate(self, prompts, n, sampling, *, mixture=None):
        self.params = [*getattr(self, "params", []), sampling]
        return super().generate(prompts, n, sampling, mixture=mixture)


def run(agent, say=lambda text, place: "so", n=2, kind="gathered", rows=(), sampling=PARAMS, **given):
    """The trajectories of an agent, the engine, and what the user was told."""
    tokenizer, stop_ids = tokenizer_with(KINDS[kind])
    lines = []
    turns = make_agent_turns(
        AgentProgram(agent, **{"gather_seconds": 5.0, **given}), tokenizer, TokenizeOptions(), past="template",
        can_fork=True, stop_ids=stop_ids, positions=None, say=lines.append,
    )  # fmt: skip
    engine = Noting(tokenizer, say)
    groups = turns.run(engine, rows or [asked(tokenizer, start=7)], n, sampling)
    return [t for group in groups for t in group], engine, lines


def post(endpoint, messages=QUESTION, path="/chat/completions", **settings):
    body = settings.pop("content", None) or json.dumps({"model": "m", "messages": messages, **settings})
    head = {"Authorization": f"Bearer {endpoint.api_key}"}
    return CLIENT.post(endpoint.base_url + path, content=body, headers=head)


def ask(endpoint, messages=QUESTION, **settings):
    answer = post(endpoint, messages, **settings)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]


def adder(endpoint, row):
    """Two calls: asks for a sum, and says it."""
    choice = ask(endpoint, row["prompt"], tools=[TOOL])
    assert choice["finish_reason"] == "tool_calls"
    (call,) = choice["message"]["tool_calls"]
    total = str(sum(json.loads(call["function"]["arguments"]).values()))
    told = {"role": "tool", "tool_call_id": call["id"], "content": total}
    last = ask(endpoint, [*row["prompt"], choice["message"], told], tools=[TOOL])
    return {"answer": last["message"]["content"], "began": row["start"]}


def written(trajectory, tokenizer):
    return [
        tokenizer.decode([i for i, on in zip(s.ids, s.mask, strict=True) if on])
        for s in trajectory.conversation.stretches
    ]


def test_two_calls_with_a_tool_are_one_completion_each_and_answered_together():
    everyone, engine, _ = run(adder, lambda text, place: "42" if "<r>42</r>" in text else CALL, n=3)
    for trajectory in everyone:
        assert written(trajectory, engine.tokenizer) == [f"{CALL}<|im_end|>42<|im_end|>"]
        assert trajectory.extra == {"answer": "42", "began": 7} and trajectory.reason == "stop"
        assert trajectory.calls == 1 and trajectory.shown == [TOOL]
        roles = [turn.message["role"] for turn in trajectory.conversation.turns]
        assert roles == ["assistant", "tool", "assistant"]
    assert [len(contexts) for contexts in engine.seen] == [3, 3]
    numbers = [params.prompt_numbers for params in engine.params]
    assert numbers == [(0, 64, 128), (1, 65, 129)]


def test_an_agent_that_cannot_be_started_says_why():
    """A column of a kind that cannot be copied for it."""
    tokenizer, _ = tokenizer_with(KINDS["gathered"])
    with pytest.raises(TypeError, match="pickle"):
        run(adder, rows=[asked(tokenizer, start=threading.Lock())])


def test_the_openai_package_is_served():
    openai = pytest.importorskip("openai")

    def agent(endpoint, row):
        with openai.OpenAI(base_url=endpoint.base_url, api_key=endpoint.api_key) as client:
            said = client.chat.completions.create(model="m", messages=row["prompt"], tools=[TOOL], temperature=0.0)
            call = said.choices[0].message.tool_calls[0]
            told = {"role": "tool", "tool_call_id": call.id, "content": "42"}
            messages = [*row["prompt"], said.choices[0].message, told]
            stream = client.chat.completions.create(model="m", messages=messages, tools=[TOOL], stream=True)
            text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
            with pytest.raises(openai.BadRequestError, match="n is served as 1 only"):
                client.chat.completions.create(model="m", messages=messages, n=2)
            return {"text": text, "models": [model.id for model in client.models.list()]}

    (trajectory,), engine, lines = run(agent, lambda text, place: "42" if "<r>42</r>" in text else CALL, n=1)
    assert trajectory.extra == {"text": "42", "models": ["policy"]}, trajectory.problem
    assert written(trajectory, engine.tokenizer) == [f"{CALL}<|im_end|>42<|im_end|>"]
    assert engine.params[0].temperature == 1.0 and any("temperature=0.0" in line for line in lines)


def test_errors_are_openais_and_cost_a_request_alone():
    def agent(endpoint, row):
        bad = [
            post(endpoint, content="{"), post(endpoint, content="[]"), post(endpoint, []), post(endpoint, n=3),
            post(endpoint, content=b'{"messages": [{"role": "user", "content": "\\ud800"}]}'),
            post(endpoint, path="/completions"), post(type(endpoint)(endpoint.base_url, "other")),
            CLIENT.get(f"{endpoint.base_url}/chat/completions",
                       headers={"Authorization": f"Bearer {endpoint.api_key}"}),
        ]  # fmt: skip
        for answer in bad:
            assert answer.json()["error"]["message"], answer.text
        ask(endpoint)
        return {"statuses": [answer.status_code for answer in bad]}

    (trajectory,), engine, _ = run(agent, n=1)
    assert trajectory.extra == {"statuses": [400, 400, 400, 400, 400, 404, 401, 404]}, trajectory.problem
    assert len(engine.seen) == 1


def test_a_body_that_is_too_large_or_has_no_length_is_not_read():
    def agent(endpoint, row):
        statuses = []
        for name, value in (("Transfer-Encoding", "chunked"), ("Content-Length", str(10**9))):
            wire = http.client.HTTPConnection(urlsplit(endpoint.base_url).netloc, timeout=60)
            wire.putrequest("POST", "/v1/chat/completions")
            wire.putheader(name, value)
            wire.endheaders()
            statuses.append(wire.getresponse().status)
            wire.close()
        ask(endpoint)
        return {"statuses": statuses}

    (trajectory,), _, _ = run(agent, n=1)
    assert trajectory.extra == {"statuses": [411, 413]}, trajectory.problem


@with_patience(1.0, 15.0)
def test_agents_that_fail_cost_their_completions_alone(seconds):
    """One raises, one hangs, one asks for nothing, one does its work; the run goes on."""
    release = threading.Event()
    ways = iter(["raise", "hang", "nothing", "work"])
    lock = threading.Lock()

    def agent(endpoint, row):
        with lock:
            way = next(ways)
        if way == "nothing":
            return {"way": way}
        ask(endpoint)
        if way == "raise":
            raise ValueError("no idea")
        if way == "hang":
            release.wait(60)
            return {"late": post(endpoint).status_code}
        return {"way": way}

    everyone, _, lines = run(agent, n=4, seconds=seconds)
    release.set()
    problems = sorted(t.problem for t in everyone)
    assert ["" in problems, sum(t.reason == "failed" for t in everyone)] == [True, 3]
    late = f"no end within {seconds:g} seconds"
    assert "no idea" in str(problems) and late in str(problems) and "for nothing" in str(problems)
    assert [t.extra for t in everyone if t.reason == "stop"] == [{"way": "work"}]
    assert all(any(s.ids for s in t.conversation.stretches) for t in everyone)
    assert len(lines) == 1 and "failed on 3 of 4" in lines[0]


@with_patience(0.8, 10.0)
def test_the_model_has_time(seconds):
    """What an agent waits for the model is not its own time."""

    def slow(text, place):
        time.sleep(0.6 * seconds)
        return "so"

    twice = lambda endpoint, row: {"said": [ask(endpoint), ask(endpoint)]}  # noqa: E731
    (trajectory,), _, _ = run(twice, slow, n=1, seconds=seconds)
    assert trajectory.reason == "stop", trajectory.problem


def test_an_agent_that_never_comes_through_is_an_error():
    def agent(endpoint, row):
        raise ImportError("no module named mine")

    with pytest.raises(RolloutError, match=r"failed on all 2 completions.*no module named mine"):
        run(agent)


def test_limits_end_a_trajectory_by_length():
    def endless(endpoint, row):
        while True:
            ask(endpoint)

    (trajectory,), engine, _ = run(endless, n=1, most_calls=3)
    assert trajectory.reason == "length" and len(engine.seen) == 3
    assert len(trajectory.conversation.stretches) == 3 and trajectory.conversation.rewritten == 0
    params = SamplingParams(max_new_tokens=7, seed=1)
    (trajectory,), engine, _ = run(endless, n=1, sampling=params, columns=["answer"])
    assert trajectory.reason == "length" and trajectory.extra == {"answer": None}
    assert sum(len(stretch.ids) for stretch in trajectory.conversation.stretches) == 7


def test_a_coroutine_and_requests_side_by_side():
    async def agent(endpoint, row):
        two = await asyncio.gather(*(asyncio.to_thread(ask, endpoint, stop=stop) for stop in ("x", "y")))
        return two[0]["message"]["content"] + two[1]["message"]["content"]

    (trajectory,), engine, _ = run(agent, lambda text, place: "axbyc", n=1, gather_seconds=0.5)
    assert trajectory.extra == {"output": "aaxb"}
    assert sorted(params.stop_strings for params in engine.params) == [("x",), ("y",)]
    assert len(trajectory.conversation.stretches) == 2


@with_patience(0.3, 10.0)
def test_a_coroutine_that_hangs_is_cancelled(seconds):
    ended = threading.Event()

    async def agent(endpoint, row):
        try:
            await asyncio.to_thread(ask, endpoint)
            await asyncio.sleep(60)
        finally:
            ended.set()

    with pytest.raises(RolloutError, match="no end within"):
        run(agent, n=1, seconds=seconds)
    assert ended.wait(10)


PROGRAM = """
import json, os, sys, urllib.request
row = json.load(sys.stdin)
body = json.dumps({"model": "m", "messages": row["prompt"]}).encode()
head = {"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"]}
asked = urllib.request.Request(os.environ["OPENAI_BASE_URL"] + "/chat/completions", body, head)
said = json.load(urllib.request.urlopen(asked))["choices"][0]["message"]["content"]
print(json.dumps({"said": said, "began": row["start"]}))
"""


def test_a_command_line_is_an_agent():
    (trajectory,), _, _ = run([sys.executable, "-I", "-c", PROGRAM], n=1)
    assert trajectory.extra == {"said": "so", "began": 7} and trajectory.reason == "stop", trajectory.problem
    with pytest.raises(RolloutError, match="exit code 3: oh no"):
        run([sys.executable, "-I", "-c", "import sys; print('oh no', file=sys.stderr); sys.exit(3)"], n=1)


@with_patience(0.5, 10.0)
def test_a_command_line_that_hangs_is_killed_with_its_children(tmp_path, seconds):
    with pytest.raises(RolloutError, match="no end within"):
        run(["sh", "-c", f"sleep 4321 & echo $! > {tmp_path}/child; wait"], n=1, seconds=seconds)
    child, deadline = int((tmp_path / "child").read_text()), time.monotonic() + 30
    while is_alive(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_alive(child)


def is_alive(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_an_agent_may_reward_its_turns():
    def agent(endpoint, row):
        ask(endpoint)
        return {"turn_rewards": [0.5], "more": 1}

    (trajectory,), _, _ = run(agent, n=1)
    assert trajectory.turn_rewards == [0.5] and trajectory.extra == {"more": 1}


def test_turn_rewards_of_another_number_cost_that_completion_alone():
    def agent(endpoint, row):
        ask(endpoint)
        with lock:
            rewards.append(0.5)
            return {"turn_rewards": list(rewards), "more": 1}

    rewards, lock = [], threading.Lock()
    everyone, _, lines = run(agent, n=2)
    assert sorted((t.reason, t.problem, str(t.extra)) for t in everyone) == [
        ("failed", "turn_rewards has 2 numbers for 1 answers of the model", "{'more': None}"),
        ("stop", "", "{'more': 1}"),
    ]
    assert all(len(t.turn_rewards) == 1 for t in everyone) and "failed on 1 of 2" in lines[0]


def test_names_that_rewards_need_are_not_an_agents():
    with pytest.raises(RolloutError, match=r"returned \['completions'\]"):
        run(lambda endpoint, row: {"completions": 1}, n=1)


def test_a_rows_columns_are_not_overwritten_by_an_agent():
    """A reward that compares an answer with the row's must not be given the agent's as both."""

    def agent(endpoint, row):
        ask(endpoint)
        row["start"] = 8
        return {"start": row.pop("start")}

    with pytest.raises(RolloutError, match=r"returned \['start'\].*other names"):
        run(agent, n=1)
    with pytest.raises(RolloutError, match=r"columns=\['start'\].*columns of the rows"):
        run(adder, n=1, columns=["start"])


def test_an_agents_rewards_belong_to_its_requests_in_their_order():
    """Where conversations alternate, a reward is not before any turn that it may follow from."""
    other = [{"role": "user", "content": "other"}]

    def agent(endpoint, row):
        first = ask(endpoint)["message"]
        ask(endpoint, other)
        ask(endpoint, [*QUESTION, first, {"role": "user", "content": "and?"}])
        return {"turn_rewards": [1.0, 2.0, 4.0]}

    (trajectory,), _, _ = run(agent, n=1)
    assert trajectory.turn_rewards == [1.0, 0.0, 6.0]  # the record: first, third, second
    with pytest.raises(RolloutError, match="turn_rewards must be a list of finite numbers"):
        run(lambda endpoint, row: {"turn_rewards": 0.5}, n=1)


def test_a_request_that_a_template_or_tokenizer_cannot_take_costs_itself_alone():
    half = {"type": "function", "id": "1", "function": {"name": "add", "arguments": '{"a": "\\ud800"}'}}

    def agent(endpoint, row):
        history = [*QUESTION, {"role": "assistant", "tool_calls": [half]}, *QUESTION]
        refused = post(endpoint, history, tools=[TOOL])
        ask(endpoint)
        return {"status": refused.status_code}

    (trajectory,), _, _ = run(agent, n=1)
    assert trajectory.extra == {"status": 400}, trajectory.problem


def test_an_engine_that_reads_less_than_the_model_bounds_a_conversation():
    """As a vLLM that was started for so many tokens; its run goes on."""

    def agent(endpoint, row):
        ask(endpoint)
        refused = post(endpoint, [{"role": "user", "content": "go on and on " * 50}])
        return {"code": refused.json()["error"]["code"]}

    tokenizer, stop_ids = tokenizer_with(KINDS["gathered"])
    turns = make_agent_turns(
        AgentProgram(agent, gather_seconds=0.0), tokenizer, TokenizeOptions(), past="template", can_fork=True,
        stop_ids=stop_ids, positions=None, say=print,
    )  # fmt: skip
    engine = Noting(tokenizer, lambda text, place: "so")
    engine.context_tokens = 100
    ((trajectory,),) = turns.run(engine, [asked(tokenizer)], 1, PARAMS)
    assert trajectory.extra == {"code": "context_length_exceeded"} and trajectory.reason == "length"
    assert engine.params[0].max_new_tokens == 100 - len(engine.seen[0][0])


def test_a_server_of_few_stop_strings_refuses_more_and_is_asked_each_once():
    def agent(endpoint, row):
        refused = post(endpoint, stop=["a", "b", "c", "d"])
        ask(endpoint, stop=["END", "b", "b", "c"])
        return {"said": refused.json()["error"]["message"]}

    tokenizer, stop_ids = tokenizer_with(KINDS["gathered"])
    turns = make_agent_turns(
        AgentProgram(agent, gather_seconds=0.0), tokenizer, TokenizeOptions(), past="template", can_fork=True,
        stop_ids=stop_ids, positions=None, say=print,
    )  # fmt: skip
    engine = Noting(tokenizer, lambda text, place: "so")
    engine.most_stop_strings = 4
    sampling = SamplingParams(max_new_tokens=50, seed=1, stop_strings=("END",))
    ((trajectory,),) = turns.run(engine, [asked(tokenizer)], 1, sampling)
    assert "takes 4 stop strings" in trajectory.extra["said"], trajectory.problem
    assert [params.stop_strings for params in engine.params] == [("END", "b", "c")]


def test_few_at_once_are_all_served():
    most, now, lock = [0], [0], threading.Lock()

    def agent(endpoint, row):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        ask(endpoint)
        with lock:
            now[0] -= 1

    everyone, _, _ = run(agent, n=5, at_once=2)
    assert most[0] <= 2 and all(t.reason == "stop" for t in everyone)


def test_a_template_without_tools_says_so_to_an_agent_that_has_some():
    def agent(endpoint, row):
        refused = post(endpoint, tools=[TOOL])
        ask(endpoint)
        return {"status": refused.status_code, "said": refused.json()["error"]["message"]}

    (trajectory,), _, _ = run(agent, n=1, kind="other_end")
    assert trajectory.extra["status"] == 400 and "refuses an answer of a tool" in trajectory.extra["said"]


@pytest.mark.parametrize(
    ("agent", "given", "said"),
    [
        ("python agent.py", {}, "a function or a list of words"), (print, {"seconds": 0}, "seconds"),
        (print, {"most_calls": 0}, "most_calls"), (print, {"at_once": 0}, "at_once"),
        (print, {"gather_seconds": -1}, "gather_seconds"), (print, {"columns": "answer"}, "columns"),
        (print, {"columns": ["prompts"]}, "columns"),
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused(agent, given, said):
    with pytest.raises(ConfigError, match=said):
        AgentProgram(agent, **given)
