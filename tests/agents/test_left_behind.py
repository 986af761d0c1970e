"""Nothing can end a thread: late ones of tools, environments and agents are counted while they run, and said."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from tests.support.conversations import Script, asked
from tests.support.templates import KINDS, tokenizer_with

from strop.agents import AgentProgram
from strop.agents.environments import Environments
from strop.agents.program import make_agent_turns
from strop.agents.set_up import make_turns
from strop.agents.tools import Tools
from strop.data.options import TokenizeOptions
from strop.online.sampling import turn_metrics
from strop.rollout import SamplingParams
from strop.watch.alarms import found_in

CALL = '<tool_call>\n{"name": "look_up", "arguments": {"word": "owl"}}\n</tool_call>'
PARAMS = SamplingParams(max_new_tokens=300, seed=1)


def tools(release: threading.Event, tokenizer: Any, stop_ids: Any) -> Any:
    def look_up(word: str) -> str:
        """Look up a word.

        Args:
            word: To be looked up.
        """
        release.wait(50)
        return word

    return make_turns(tokenizer, tools=Tools([look_up]), seconds=0.2, at_once=4)


def environments(release: threading.Event, tokenizer: Any, stop_ids: Any) -> Any:
    class Slow:
        reward = 0.0

        def step(self, text: str) -> tuple[None, bool]:
            release.wait(50)
            return None, True

    return make_turns(tokenizer, environments=Environments(Slow, seconds=0.2))


def agents(release: threading.Event, tokenizer: Any, stop_ids: Any) -> Any:
    def agent(endpoint: Any, row: Any) -> None:
        release.wait(50)

    turns = make_agent_turns(
        AgentProgram(agent, seconds=0.2), tokenizer, TokenizeOptions(), past="template", can_fork=True,
        stop_ids=stop_ids, positions=None, say=lambda line: None,
    )  # fmt: skip
    turns.has_worked = True
    return turns


@pytest.mark.parametrize("made", [tools, environments, agents])
def test_threads_are_counted_while_they_run_and_said(made: Any) -> None:
    release = threading.Event()
    tokenizer, stop_ids = tokenizer_with(KINDS["gathered"])
    turns = made(release, tokenizer, stop_ids)
    row = asked(tokenizer, getattr(turns, "schemas", None) or None)
    script = Script(tokenizer, lambda text, place: "so" if "no answer" in text else CALL)
    (group,) = turns.run(script, [row], 2, PARAMS)
    metrics = turn_metrics(group, turns.threads_left)
    assert (metrics["turns/left_behind"].total, metrics["turns/left_behind"].count) == (2.0, 1.0)
    args = SimpleNamespace(kl_is_distance=False)
    said = dict(found_in({"loss": 0.0, "turns/left_behind": 2.0}, 2, args))
    assert "2 calls of tools, environments or agents" in said["left_behind"]
    release.set()
    while turns.threads_left:
        time.sleep(0.01)
    assert "turns/left_behind" not in turn_metrics(group, turns.threads_left)
    assert not dict(found_in({"loss": 0.0}, 2, args))
