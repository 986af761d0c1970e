"""The agent of OpenAI's API: its loop plays a right script to the end, and its run goes through."""

from __future__ import annotations

import pytest
from examples.openai_agent import TOOLS, agent
from examples.two_calls import character_tokenizer, main, make_rows, solved
from tests.support.conversations import Script, asked

from strop.agents import AgentProgram
from strop.agents.program import make_agent_turns
from strop.data.options import TokenizeOptions
from strop.rollout import SamplingParams

pytest.importorskip("openai")


def test_its_loop_answers_the_calls_of_a_right_script():
    tokenizer, (row,) = character_tokenizer(), make_rows(["stone"], 1, seed=3)
    price, pieces = row["price"], row["pieces"]
    engine = Script(tokenizer, [
        '<|tool_call_start|>[price(good="stone")]<|tool_call_end|>',
        f"<|tool_call_start|>[times(a={price}, b={pieces})]<|tool_call_end|>", str(price * pieces),
    ])  # fmt: skip
    turns = make_agent_turns(
        AgentProgram(agent), tokenizer, TokenizeOptions(), past="template", can_fork=True, stop_ids=(), positions=None,
        say=print,
    )  # fmt: skip
    columns = {name: row[name] for name in ("good", "price", "pieces")}
    ((game,),) = turns.run(engine, [asked(tokenizer, TOOLS, **columns)], 1, SamplingParams(max_new_tokens=96, seed=1))
    assert game.extra == {"answer": str(price * pieces)}, game.problem
    conversation = [turn.message for turn in game.conversation.turns]
    assert solved([conversation], **{name: [value] for name, value in columns.items()}) == [1.0]
    assert len(game.conversation.stretches) == 1 and game.calls == 2


def test_it_runs(tmp_path):
    settings = {
        "output_dir": tmp_path, "demonstrations": 64, "prompts": 2, "held_out": 2, "num_generations": 2,
        "per_device_train_batch_size": 4, "per_device_eval_batch_size": 2, "max_completion_length": 8, "use_cpu": True,
    }  # fmt: skip
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    assert all(0 <= share <= 1 for share in main(words, rollout_func=AgentProgram(agent)))
