"""The task of two calls: it can be solved by its tools alone, its reward tells each step, and its run goes through."""

from __future__ import annotations

import random

import pytest
from examples.two_calls import Shop, call, character_tokenizer, main, make_rows, right_steps, script, solved, times
from tests.support.conversations import Script, asked

from strop.agents.environments import Environments
from strop.agents.set_up import make_turns
from strop.agents.tools import Tools
from strop.rollout import SamplingParams

ROW = {"good": "stone", "price": 37, "pieces": 4}
ASKED, TIMES = call("price", good="stone"), call("times", a=37, b=4)


def said(text):
    return {"role": "assistant", "content": text}


def test_each_right_step_counts_and_a_guess_solves_nothing():
    given = {name: [value] for name, value in ROW.items()}
    for conversation, reward in (
        ([ASKED, TIMES, said("148")], 1.0),
        ([ASKED, call("times", a=4, b=37), said("It is 148.")], 1.0),
        ([said("148")], 0.5),
        ([ASKED, said("37")], 0.25),
        ([ASKED, call("times", a=37, b=5), said("185")], 0.25),
        ([ASKED, TIMES, {"role": "tool", "name": "times", "content": "148"}], 0.5),
    ):
        assert right_steps([conversation], **given) == [reward]
        assert solved([conversation], **given) == [float(reward == 1.0)]


def test_two_of_five_scripts_are_right():
    rows, rng = make_rows(["stone", "ant"], 1000, seed=0), random.Random(0)
    columns = {name: [row[name] for row in rows] for name in ROW}
    assert sum(solved([script(row, rng) for row in rows], **columns)) / 1000 == pytest.approx(0.4, abs=0.05)


def test_a_script_is_played_by_the_tools_as_it_stands():
    """The characters that a right script is written in are read as calls, and the shop and the product answer them."""
    tokenizer = character_tokenizer()
    (row,) = make_rows(["stone"], 1, seed=3)
    rng = random.Random(0)  # which draws a right one
    wanted = [m for m in script(row, rng) if m["role"] == "assistant"]
    environments = Environments(Shop)
    turns = make_turns(tokenizer, tools=Tools([times]), environments=environments)
    prompt = asked(tokenizer, turns.schemas, **{name: row[name] for name in ROW})
    words = [tokenizer.apply_chat_template([m], tokenize=False).split("<|assistant|>")[1] for m in wanted]
    engine = Script(tokenizer, [text.removesuffix("</s>") for text in words])
    ((game,),) = turns.run(engine, [prompt], 1, SamplingParams(max_new_tokens=96, seed=1))
    environments.close()
    conversation = [turn.message for turn in game.conversation.turns]
    assert solved([conversation], **{name: [row[name]] for name in ROW}) == [1.0]
    assert (game.calls, game.failures, game.conversation.rewritten) == (2, 0, 0)


def test_it_runs(tmp_path):
    settings = {
        "output_dir": tmp_path, "demonstrations": 64, "prompts": 8, "held_out": 4, "num_generations": 2,
        "per_device_train_batch_size": 16, "per_device_eval_batch_size": 4, "max_completion_length": 8, "use_cpu": True,
    }  # fmt: skip
    shares = main([word for name, value in settings.items() for word in (f"--{name}", str(value))])
    assert all(0 <= share <= 1 for share in shares)
