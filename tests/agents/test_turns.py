"""Rollouts of several turns: sampled ids stay, contexts are the template's, limits hold, a failure costs one."""

from __future__ import annotations

import threading

import pytest
from tests.support.conversations import QUESTION, Letters, Script, asked
from tests.support.patience import with_patience
from tests.support.templates import KINDS, tokenizer_with

from strop.agents.environments import Environments
from strop.agents.set_up import make_turns
from strop.agents.tools import Tools
from strop.errors import DataError, RolloutError
from strop.records import Example
from strop.rollout import SamplingParams

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 20, "b": 22}}\n</tool_call>'
MANY = SamplingParams(max_new_tokens=400, seed=1)


def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: The first.
        b: The second.
    """
    return a + b


@pytest.fixture
def tokenizer():
    return tokenizer_with(KINDS["gathered"])[0]


def run(tokenizer, say, n=1, sampling=MANY, script=Script, row=None, **given):
    """The trajectories of one prompt, and the stub that wrote them."""
    given = given or {"tools": Tools([add])}
    turns = make_turns(tokenizer, **given)
    engine = say if isinstance(say, Script) else script(tokenizer, say)
    row = asked(tokenizer, turns.schemas or None) if row is None else row
    return turns.run(engine, [row], n, sampling)[0], engine


def whole(trajectory):
    (stretch,) = trajectory.conversation.stretches
    return stretch.prompt_ids + stretch.ids


def test_the_finished_conversation_is_the_templates_and_answers_are_masked(tokenizer):
    (trajectory, _), script = run(tokenizer, [CALL, "the sum is 42"], n=2)
    messages = [*trajectory.conversation.messages, *(turn.message for turn in trajectory.conversation.turns)]
    assert [m["role"] for m in messages] == ["user", "assistant", "tool", "assistant"]
    text = tokenizer.apply_chat_template(messages, tools=Tools([add]).schemas, tokenize=False)
    ids = whole(trajectory)
    assert ids == tokenizer(text.rstrip(), add_special_tokens=False)["input_ids"]
    (stretch,) = trajectory.conversation.stretches
    wrote = [i for i, on in zip(stretch.ids, stretch.mask, strict=True) if on]
    assert tokenizer.decode(wrote) == f"{CALL}<|im_end|>the sum is 42<|im_end|>"
    assert [logp for logp, on in zip(stretch.logps, stretch.mask, strict=True) if not on] == [0.0] * stretch.mask.count(
        0
    )
    assert script.seen[1][0] == ids[: len(script.seen[1][0])]
    assert (trajectory.calls, trajectory.failures, trajectory.reason) == (1, 0, "stop")
    assert sum(turn.tokens for turn in trajectory.conversation.turns) == len(stretch.ids)


def test_the_template_prints_a_list_as_text_and_rewards_see_the_list(tokenizer):
    def add(a: int, b: int) -> list[tuple[int, str]]:
        """Add two numbers.

        Args:
            a: The first.
            b: The second.
        """
        return [(a + b, "sum")]

    (trajectory,), script = run(tokenizer, [CALL, "42"], tools=Tools([add]))
    assert '<r>[[42, "sum"]]</r>' in tokenizer.decode(script.seen[1][0])
    assert trajectory.conversation.turns[1].message["content"] == [(42, "sum")]


def test_a_turn_keeps_the_spelling_that_was_sampled(tokenizer):
    compact = CALL.replace(": ", ":").replace(", ", ",")
    (trajectory,), script = run(tokenizer, [compact, "42"], script=Letters)
    spelled = script.ids(compact)
    (stretch,) = trajectory.conversation.stretches
    assert tokenizer(compact, add_special_tokens=False)["input_ids"] != spelled
    assert stretch.ids[: len(spelled)] == spelled and trajectory.conversation.respelled == 1
    text = tokenizer.decode(script.seen[1][0])
    assert text.endswith(f"{compact}<|im_end|>\n<|im_start|>user\n<r>42</r><|im_end|>\n<|im_start|>assistant\n")


def test_a_turn_that_a_stop_string_ended_gets_its_end_token(tokenizer):
    (trajectory,), script = run(tokenizer, Script(tokenizer, [CALL, "42"], end=None))
    text = tokenizer.decode(script.seen[1][0])
    assert f"{CALL}<|im_end|>\n<|im_start|>user\n<r>42</r>" in text and text.count("<|im_end|>") == 4
    (stretch,) = trajectory.conversation.stretches
    end = stretch.ids[len(script.ids(CALL))]
    assert tokenizer.decode([end]) == "<|im_end|>" and stretch.mask[len(script.ids(CALL))] == 0


def test_an_end_token_is_never_doubled():
    tokenizer, stop_ids = tokenizer_with(KINDS["endless"])
    arguments = {"a": 20, "b": 22}.items()
    written = "".join(f"\n<arg_key>{k}</arg_key>\n<arg_value>{v}</arg_value>" for k, v in arguments)
    call = f"<tool_call>add{written}\n</tool_call>"
    script = Script(tokenizer, [f"\n{call}", "42"], end="<|observation|>")
    given = {"tools": Tools([add]), "stop_ids": stop_ids}
    (_,), script = run(tokenizer, script, **given)
    assert tokenizer.decode(script.seen[1][0]).endswith(f"\n{call}<|observation|>\n<r>42</r><|assistant|>\n")


def test_a_turn_that_ended_in_another_token_forks(tokenizer):
    other, stop_ids = tokenizer_with(KINDS["other_end"])
    other.eos_token = "</s>"
    talks = Environments(lambda: Talk(2))
    (trajectory,), _script = run(other, Script(other, ["a", "b"], end="</s>"), environments=talks, stop_ids=stop_ids)
    first, second = trajectory.conversation.stretches
    assert other.decode(second.prompt_ids).endswith(
        "assistant\na<end_of_turn>\n<start_of_turn>user\nturn 1<end_of_turn>\n<start_of_turn>assistant\n"
    )
    assert other.decode(first.ids) == "a</s>" and other.decode(second.ids) == "b</s>"


class Talk:
    """Answers so many times."""

    def __init__(self, most):
        self.most, self.turns, self.thread = most, 0, threading.get_ident()

    def reset(self, start="", **row):
        assert self.thread == threading.get_ident()
        self.turns = 0
        return f" {start}" if start else None

    def step(self, text):
        assert self.thread == threading.get_ident()
        self.turns += 1
        return f"turn {self.turns}", self.turns == self.most


def test_an_observation_joins_the_users_turn_and_the_environment_ends_the_conversation(tokenizer):
    row = asked(tokenizer, start="board 1 2 3")
    (trajectory,), script = run(tokenizer, ["a", "b"], environments=Environments(lambda: Talk(2)), row=row)
    assert tokenizer.decode(script.seen[0][0]) == "<|im_start|>user\nask board 1 2 3<|im_end|>\n<|im_start|>assistant\n"
    assert "a<|im_end|>\n<|im_start|>user\nturn 1<|im_end|>\n<|im_start|>assistant\n" in tokenizer.decode(
        whole(trajectory)
    )
    assert trajectory.environment.turns == 2 and trajectory.reason == "stop" and len(script.seen) == 2


def test_a_begun_answer_is_gone_on_with(tokenizer):
    begun = [*QUESTION, {"role": "assistant", "content": "I call. "}]
    ids = tokenizer.apply_chat_template(begun, tools=Tools([add]).schemas, continue_final_message=True)["input_ids"]
    row = Example(ids, [], extras={"prompt": begun, "columns": {}, "tools": Tools([add]).schemas})
    (trajectory,), script = run(tokenizer, [CALL, "42"], row=row)
    said = trajectory.conversation.turns[0].message
    assert said["content"] == "I call." and len(said["tool_calls"]) == 1
    text = tokenizer.decode(script.seen[1][0])
    assert text.count("<|im_start|>assistant") == 2 and f"assistant\nI call. {CALL}<|im_end|>\n<|im_start|>user" in text


def test_rounds_bound_the_answers_and_an_answer_may_follow(tokenizer):
    for rounds, asked_for in ((1, 2), (3, 4)):
        (trajectory,), script = run(tokenizer, [CALL] * 9, tools=Tools([add]), rounds=rounds)
        assert len(script.seen) == asked_for and trajectory.reason == "stop"


def test_all_tokens_count_and_answers_that_do_not_fit_are_left_out(tokenizer):
    (trajectory,), script = run(tokenizer, [CALL] * 20, sampling=SamplingParams(max_new_tokens=150))
    assert trajectory.conversation.used <= 150 and trajectory.reason == "length"

    def long(a: int, b: int) -> str:
        """Say much.

        Args:
            a: The first.
            b: The second.
        """
        return "word " * 200

    long.__name__ = "add"
    (trajectory,), script = run(
        tokenizer, [CALL] * 20, tools=Tools([long]), sampling=SamplingParams(max_new_tokens=150)
    )
    assert trajectory.rolled_back and [t.message["role"] for t in trajectory.conversation.turns] == ["assistant"]
    assert trajectory.conversation.used == len(script.ids(CALL)) + 1


def test_a_rows_own_tools_bound_what_may_run(tokenizer):
    only = {"type": "function", "function": {"name": "only", "parameters": {"type": "object", "properties": {}}}}
    (trajectory,), script = run(tokenizer, [CALL, "done"], tools=Tools([add]), row=asked(tokenizer, [only]))
    shown = tokenizer.decode(script.seen[0][0])
    assert "only" in shown and '"add"' not in shown
    assert trajectory.failures == 1 and "there is no tool 'add'" in tokenizer.decode(script.seen[1][0])


def test_calls_are_read_before_special_tokens_are_dropped(tokenizer):
    tokenizer.add_special_tokens({"additional_special_tokens": ["<tool_call>", "</tool_call>", "<|im_end|>"]})
    (trajectory,), _ = run(tokenizer, ["I call." + CALL, "done"])
    assert trajectory.calls == 1 and trajectory.conversation.turns[0].message["content"] == "I call."


@with_patience(0.2, 10.0)
def test_failures_cost_one_completion(tokenizer, seconds):
    ended = threading.Event()

    class Moody(Talk):
        made = 0

        def __init__(self):
            super().__init__(1)
            Moody.made += 1
            self.number = Moody.made

        def step(self, text):
            if self.number == 2:
                raise ValueError("illegal move")
            if self.number == 3:
                ended.wait(60)
            return super().step(text)

    environments = Environments(Moody, seconds=seconds)
    group, _ = run(tokenizer, ["a"], n=3, environments=environments)
    assert [t.reason for t in group] == ["stop", "failed", "failed"]
    assert (
        "illegal move" in group[1].problem
        and "no answer within" in group[2].problem
        and environments.left_behind.running == 1
    )
    group, _ = run(tokenizer, ["a"], n=3, environments=environments)
    assert Moody.made == 4 and group[2].reason == "stop"  # the one that hung was made anew, the others were not
    ended.set()

    class Broken(Talk):
        def reset(self, **row):
            raise OSError("no board")

    group, script = run(tokenizer, [], n=2, environments=Environments(lambda: Broken(1)))
    assert [t.reason for t in group] == ["failed", "failed"] and not script.seen
    assert all(t.conversation.stretches[0].mask == [0] for t in group)


@pytest.mark.parametrize("reward", [float("nan"), "much", None, [1.0, 2.0]])
def test_a_step_whose_reward_is_no_number_costs_one_completion(tokenizer, reward):
    class Odd(Talk):
        made = 0

        def __init__(self):
            super().__init__(1)
            Odd.made += 1
            self.number = Odd.made

        def step(self, text):
            return None, reward if self.number == 1 else 1.5, True

    group, _ = run(tokenizer, ["a"], n=2, environments=Environments(Odd))
    assert [t.reason for t in group] == ["failed", "stop"] and group[1].turn_rewards == [1.5]
    assert "step(), its reward: " in group[0].problem


def test_what_breaks_the_contract_is_said_at_once(tokenizer):
    class Wrong(Talk):
        def step(self, text):
            return "only words"

    with pytest.raises(RolloutError, match="observation or None, done"):
        run(tokenizer, ["a"], environments=Environments(lambda: Wrong(1)))
    turns = make_turns(tokenizer, tools=Tools([add]), positions=40)
    with pytest.raises(DataError, match="Row -1: its prompt"):
        turns.run(Script(tokenizer, []), [asked(tokenizer, turns.schemas)], 1, MANY)
