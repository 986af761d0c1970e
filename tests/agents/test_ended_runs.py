"""Agents of a run that has ended: nobody waits for what they do, and what they have begun is stopped."""

from __future__ import annotations

import os
import threading
import time

from tests.agents.test_agent_program import PARAMS
from tests.support.conversations import Script, asked
from tests.support.templates import KINDS, tokenizer_with

from strop.agents import AgentProgram
from strop.agents.program import make_agent_turns
from strop.data.options import TokenizeOptions
from strop.errors import RolloutError
from strop.online.sampling import RoundEngine


def test_programs_of_a_run_that_has_ended_are_killed_while_they_are_waited_for(tmp_path):
    """An agent without a limit, which asks for nothing: without a look at the run nothing would come to be heard."""
    tokenizer, stop_ids = tokenizer_with(KINDS["gathered"])
    ended, pid, seen = threading.Event(), tmp_path / "pid", []
    program = AgentProgram(["sh", "-c", f"echo $$ > {pid}.new; mv {pid}.new {pid}; exec sleep 60"], seconds=None)
    turns = make_agent_turns(
        program, tokenizer, TokenizeOptions(), past="template", can_fork=True, stop_ids=stop_ids, positions=None,
        say=seen.append,
    )  # fmt: skip
    engine = RoundEngine(Script(tokenizer, "so"), ended)

    def converse():
        try:
            turns.run(engine, [asked(tokenizer)], 1, PARAMS)
        except RolloutError as error:
            seen.append(error)

    thread = threading.Thread(target=converse, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not pid.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    number = int(pid.read_text())
    ended.set()
    thread.join(20)
    assert not thread.is_alive() and "The run that asked for these completions has ended" in str(seen[-1])
    while time.monotonic() < deadline:
        try:
            os.kill(number, 0)
        except ProcessLookupError:
            break
        time.sleep(0.01)
    else:
        raise AssertionError("the program is still there")
