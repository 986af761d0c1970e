"""Rollouts of several turns: sampled ids stay as they are, answers are masked, trajectories end when they should."""

from __future__ import annotations

import pytest

from strop.errors import ConfigError
from strop.records import Rollout
from strop.rollout import SamplingParams
from strop.rollout.tools import ToolCall, Tools, read_calls
from strop.rollout.turns import Turns
from strop.testing.tokenizers import toy_tokenizer


def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: The first.
        b: The second.
    """
    return a + b


def shout(text: str) -> str:
    """Fail.

    Args:
        text: Anything.
    """
    raise ValueError("too loud")


class Script:
    """A generator that says the same texts turn by turn, and keeps the prompts it was given."""

    name, reason = "script", ""

    def __init__(self, tokenizer, texts):
        self.tokenizer, self.texts, self.seen = tokenizer, texts, []

    def generate(self, prompts, n, sampling, *, mixture=None):
        self.seen.append([list(p) for p in prompts])
        text = self.texts[len(self.seen) - 1]
        ids = [*self.tokenizer(text, add_special_tokens=False)["input_ids"], self.tokenizer.eos_token_id]
        ids = ids[: sampling.max_new_tokens]
        reason = "stop" if ids[-1] == self.tokenizer.eos_token_id else "length"
        count = len(prompts)
        return Rollout(
            prompts,
            [[list(ids)] for _ in range(count)],
            [[[-0.5] * len(ids)] for _ in range(count)],
            [[reason]] * count,
        )


@pytest.fixture
def tokenizer():
    return toy_tokenizer("chatml")


def test_calls_are_read_from_tags_and_from_bare_json():
    text = 'I call <tool_call>{"name": "add", "arguments": {"a": 1, "b": 2}}</tool_call> now'
    assert read_calls(text) == [ToolCall("add", {"a": 1, "b": 2})]
    assert read_calls('{"name": "add", "parameters": {"a": 1}}') == [ToolCall("add", {"a": 1})]
    assert read_calls("no call here") == []
    assert "not valid JSON" in (read_calls("<tool_call>{oops}</tool_call>")[0].problem or "")


def test_tools_answer_or_explain():
    tools = Tools([add, shout])
    assert tools.answer(ToolCall("add", {"a": 1, "b": 2})) == ("3", True)
    assert tools.answer(ToolCall("shout", {"text": "x"})) == ("Error: ValueError: too loud", False)
    assert "Did you mean 'add'?" in tools.answer(ToolCall("adds", {}))[0]
    with pytest.raises(ConfigError, match="undescribed"):

        def undescribed(x):
            return x

        Tools([undescribed])


def test_a_tool_turn_is_masked_and_the_sampled_ids_are_kept(tokenizer, monkeypatch):
    call = '<tool_call>{"name": "add", "arguments": {"a": 20, "b": 22}}</tool_call>'
    script = Script(tokenizer, [call, "the sum is 42"])
    turns = Turns(tokenizer, tools=Tools([add]))
    prompt = tokenizer("ask", add_special_tokens=False)["input_ids"]
    rollout, groups = turns.run(script, [prompt], [{}], 2, SamplingParams(max_new_tokens=400, seed=1))
    ids, mask = rollout.completions[0][0], rollout.loss_mask[0][0]
    first = [*tokenizer(call, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    assert ids[: len(first)] == first and mask[: len(first)] == [1] * len(first)
    assert script.seen[1][0] == prompt + ids[: len(script.seen[1][0]) - len(prompt)]
    answer = tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if not m])
    assert "42" in answer and "assistant" in answer
    assert groups[0][0].calls == 1 and rollout.finish_reasons[0][0] == "stop"
    assert all(logp == 0.0 for logp, m in zip(rollout.sampler_logps[0][0], mask, strict=True) if not m)


class Letters:
    """Spells texts letter by letter, as a model may and the tokenizer never does."""

    def __init__(self, tokenizer):
        self.tokenizer, self.eos_token_id = tokenizer, tokenizer.eos_token_id

    def __call__(self, text, **options):
        return {"input_ids": [i for letter in text for i in self.tokenizer(letter, **options)["input_ids"]]}


def test_a_turn_keeps_the_spelling_that_was_sampled(tokenizer):
    call = '<tool_call>{"name": "add", "arguments": {"a": 20, "b": 22}}</tool_call>'
    spelled = Letters(tokenizer)(call, add_special_tokens=False)["input_ids"]
    assert tokenizer(call, add_special_tokens=False)["input_ids"] != spelled
    script = Script(Letters(tokenizer), [call, "the sum is 42"])
    rollout, _ = Turns(tokenizer, tools=Tools([add])).run(script, [[7]], [{}], 1, SamplingParams(max_new_tokens=400))
    assert rollout.completions[0][0][: len(spelled)] == spelled
    assert script.seen[1][0][: 1 + len(spelled)] == [7, *spelled]


def test_the_budget_covers_all_turns(tokenizer):
    call = '<tool_call>{"name": "add", "arguments": {"a": 20, "b": 22}}</tool_call>'
    turns = Turns(tokenizer, tools=Tools([add]), max_turns=3)
    rollout, _ = turns.run(Script(tokenizer, [call] * 3), [[5]], [{}], 1, SamplingParams(max_new_tokens=60))
    assert rollout.finish_reasons[0][0] == "length"
    written = sum(rollout.loss_mask[0][0])
    assert written <= 60


class Guess:
    def __init__(self):
        self.turns = 0

    def reset(self, secret=None, **row):
        self.secret = secret
        return "guess a number"

    def step(self, text):
        self.turns += 1
        return (None, True) if str(self.secret) in text else ("wrong", False)


def test_an_environment_runs_until_it_is_done(tokenizer):
    turns = Turns(tokenizer, environment_factory=Guess)
    script = Script(tokenizer, ["is it 3", "is it 7"])
    rollout, groups = turns.run(script, [[5]], [{"secret": 7}], 1, SamplingParams(max_new_tokens=500))
    assert groups[0][0].environment.turns == 2
    text = tokenizer.decode(
        [i for i, m in zip(rollout.completions[0][0], rollout.loss_mask[0][0], strict=True) if not m]
    )
    assert "guess a number" in text and "wrong" in text
    assert rollout.loss_mask[0][0][-1] == 1 and rollout.finish_reasons[0][0] == "stop"


def test_one_kind_of_partner_only(tokenizer):
    with pytest.raises(ConfigError, match="either tools or"):
        Turns(tokenizer, tools=Tools([add]), environment_factory=Guess)
    with pytest.raises(ConfigError, match="chat template"):
        Turns(toy_tokenizer("plain"), tools=Tools([add]))
