"""The code agent runs a program, reads the error, and mends it; hidden tests say what that is worth."""

from __future__ import annotations

import json

import pytest
from examples.code_agent import Workbench, main, make_rows
from tests.rewards.test_code_execution import needs_wall
from tests.support.conversations import Script, asked
from tests.support.templates import KINDS, tokenizer_with

from strop.agents.environments import Environments
from strop.agents.set_up import make_turns
from strop.rollout import SamplingParams
from strop.testing.tiny import tiny_model

BROKEN = "def count_vowels(text):\n    return sum(letter in 'aeiou' for letter in txet)\n\nprint(count_vowels('strop'))"


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_with(KINDS["gathered"])[0]


def mending(context, place):
    """Runs a program with a slip of the pen in it, and mends it once the error is read."""
    if "<r>1" in context:
        return "done"
    program = BROKEN.replace("txet", "text") if "name 'txet' is not defined" in context else BROKEN
    return f"<tool_call>\n{json.dumps({'name': 'run', 'arguments': {'program': program}})}\n</tool_call>"


@needs_wall
def test_an_error_is_read_and_mended(tokenizer):
    environments = Environments(Workbench)
    turns = make_turns(tokenizer, environments=environments)
    row = asked(tokenizer, turns.schemas, tests=make_rows(1)[0]["tests"])
    ((agent,),) = turns.run(Script(tokenizer, mending), [row], 1, SamplingParams(max_new_tokens=4000, seed=1))
    said = [turn.message for turn in agent.conversation.turns]
    reward = agent.environment.get_reward()
    environments.close()
    assert [message["role"] for message in said] == ["assistant", "tool"] * 2 + ["assistant"]
    assert "NameError" in said[1]["content"] and said[3]["content"] == "1"
    assert reward == 1.0


@needs_wall
def test_the_reward_is_the_share_of_hidden_tests():
    bench = Workbench()
    bench.reset(make_rows(1)[0]["tests"])
    assert bench.get_reward() == 0.0
    assert bench.run("def count_vowels(text): return len(text) and 1") == "(it ran and printed nothing)"
    assert bench.get_reward() == pytest.approx(2 / 3)


def test_it_trains(tmp_path, tokenizer):
    tiny_model("llama", vocab_size=len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    settings = {
        "model_name_or_path": tmp_path / "model", "output_dir": tmp_path / "run", "max_steps": 1, "logging_steps": 1,
        "per_device_train_batch_size": 2, "num_generations": 2, "max_completion_length": 8, "report_to": "none",
        "use_cpu": True,
    }  # fmt: skip
    trainer = main([word for name, value in settings.items() for word in (f"--{name}", str(value))])
    assert trainer.state.log_history[0]["rewards/Workbench/mean"] == 0.0
