"""The agent of OpenAI's API: its loop plays a right script to the end, and its run learns to look up."""

from __future__ import annotations

import random

import pytest
from examples.openai_agent import QUESTION, TOOLS, agent, main, script, solved
from examples.two_calls import character_tokenizer, make_rows
from tests.support.conversations import Script, asked

from strop.agents import AgentProgram
from strop.agents.program import make_agent_turns
from strop.data.options import TokenizeOptions
from strop.rollout import SamplingParams

pytest.importorskip("openai")


def test_its_loop_answers_the_call_of_a_right_script():
    tokenizer, (row,) = character_tokenizer(), make_rows(["stone"], 1, seed=3, question=QUESTION)
    price = str(row["price"])
    engine = Script(tokenizer, ['<|tool_call_start|>[price(good="stone")]<|tool_call_end|>', price])
    turns = make_agent_turns(
        AgentProgram(agent), tokenizer, TokenizeOptions(), past="template", can_fork=True, stop_ids=(), positions=None,
        say=print,
    )  # fmt: skip
    columns = {name: row[name] for name in ("good", "price", "pieces")}
    ((game,),) = turns.run(engine, [asked(tokenizer, TOOLS, **columns)], 1, SamplingParams(max_new_tokens=96, seed=1))
    assert game.extra == {"answer": price}, game.problem
    assert solved(answer=[game.extra["answer"], None], price=[row["price"]] * 2) == [1.0, 0.0]
    assert len(game.conversation.stretches) == 1 and game.calls == 1


def test_half_of_the_scripts_look_up():
    rows, rng = make_rows(["stone"], 600, seed=0, question=QUESTION), random.Random(0)
    looked = [len(script(row, rng)) == 4 for row in rows]
    assert sum(looked) / 600 == pytest.approx(0.5, abs=0.06)


def test_it_runs(tmp_path):
    settings = {
        "output_dir": tmp_path, "demonstrations": 64, "prompts": 2, "held_out": 2, "num_generations": 2,
        "per_device_train_batch_size": 4, "per_device_eval_batch_size": 2, "max_completion_length": 8, "use_cpu": True,
    }  # fmt: skip
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    assert all(0 <= share <= 1 for share in main(words))


@pytest.mark.slow
def test_it_learns_to_look_up(tmp_path):
    """As docs/agents.md says, with its own settings."""
    before, after = main(["--output_dir", str(tmp_path), "--use_cpu", "true"])
    assert before < 0.45 and after > before + 0.1
