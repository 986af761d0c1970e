"""An agent's requests against what was recorded: sampled ids stay, and what cannot keep them is counted."""

from __future__ import annotations

import json

import pytest
from tests.support.conversations import Letters
from tests.support.templates import KINDS, tokenizer_with

from strop.agents.chat_api import Refused, read_request
from strop.agents.recorded import Recorded
from strop.agents.set_up import make_turns
from strop.agents.tools import Tools

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 20, "b": 22}}\n</tool_call>'
ASK = {"role": "user", "content": "go"}


def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: The first.
        b: The second.
    """
    return a + b


SCHEMAS = Tools([add]).schemas


class Talk:
    """Requests of one agent to a model that says what it is told, letter by letter."""

    def __init__(self, kind="gathered", budget=400, **given):
        self.tokenizer, stop_ids = tokenizer_with(KINDS[kind])
        self.turns = make_turns(self.tokenizer, tools=Tools([add]), stop_ids=stop_ids)
        self.recorded = Recorded(self.turns.template, given.pop("past", "template"), budget, **given)
        self.speller = Letters(self.tokenizer, [])

    def open(self, messages, **settings):
        return self.recorded.open(read_request({"messages": messages, "tools": SCHEMAS, **settings}))

    def say(self, asked, text, stopped=True):
        ids = self.speller.ids(text) + ([self.tokenizer.eos_token_id] if stopped else [])
        reply = self.recorded.hear(asked, ids, [-0.5] * len(ids), stopped=stopped, stop_ids=self.turns.stop_ids)
        return reply.message

    def ask(self, messages, text, **settings):
        return self.say(self.open(messages, **settings), text)

    def text(self, stretch):
        return self.tokenizer.decode(stretch.prompt_ids + stretch.ids)

    def written(self, record):
        """What each stretch learns from."""
        return [self.tokenizer.decode([i for i, on in zip(s.ids, s.mask, strict=True) if on]) for s in record.stretches]


@pytest.fixture
def talk():
    return Talk()


def resent(message, **changes):
    """A reply as the `openai` package sends it back."""
    return {"refusal": None, "annotations": [], "audio": None, **json.loads(json.dumps(message)), **changes}


def answer(message, text="42"):
    return {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": text}


def test_a_conversation_that_is_resent_keeps_its_sampled_ids(talk):
    said = talk.ask([ASK], CALL)
    assert said["tool_calls"][0]["function"] == {"name": "add", "arguments": '{"a": 20, "b": 22}'}
    talk.ask([ASK, resent(said), answer(said)], "it is 42")
    record = talk.recorded.whole()
    (stretch,) = record.stretches
    spelled = talk.speller.ids(CALL)
    assert stretch.ids[: len(spelled)] == spelled and talk.tokenizer(CALL)["input_ids"] != spelled
    assert talk.written(record) == [f"{CALL}<|im_end|>it is 42<|im_end|>"] and record.rewritten == 0
    messages = [ASK, *(turn.message for turn in record.turns)]
    whole = talk.tokenizer.apply_chat_template(messages, tools=SCHEMAS, tokenize=False)
    assert talk.text(stretch) == whole.rstrip()
    assert [turn.message["role"] for turn in record.turns] == ["assistant", "tool", "assistant"]


@pytest.mark.parametrize("change", [{"content": "  so \n"}, {"reasoning_content": "other"}, {"name": None}])
def test_blanks_and_thoughts_make_no_other_message(talk, change):
    said = talk.ask([ASK], "so")
    talk.ask([ASK, resent(said, **change), ASK], "then")
    assert len(talk.recorded.whole().stretches) == 1


@pytest.mark.parametrize(
    "history",
    [
        [ASK, {"role": "assistant", "content": "edited"}, ASK],
        [{"role": "user", "content": "other"}, {"role": "assistant", "content": "so"}, ASK],
        [ASK, ASK],
    ],
    ids=["an edited turn", "another beginning", "a turn left out"],
)
def test_a_rewritten_history_forks_and_is_counted(talk, history):
    talk.ask([ASK], "so")
    talk.ask(history, "then")
    record = talk.recorded.whole()
    assert talk.written(record) == ["so<|im_end|>", "then<|im_end|>"] and record.rewritten == 1
    wanted = talk.tokenizer.apply_chat_template(history, tools=SCHEMAS, add_generation_prompt=True, tokenize=False)
    assert talk.tokenizer.decode(record.stretches[1].prompt_ids) == wanted


def test_a_later_turn_that_was_edited_is_counted_and_no_turn_of_the_model(talk):
    first = talk.ask([ASK], "so")
    talk.ask([ASK, first, ASK], "then")
    talk.ask([ASK, first, ASK, {"role": "assistant", "content": "edited"}, ASK], "end")
    record = talk.recorded.whole()
    assert talk.written(record) == ["so<|im_end|>then<|im_end|>", "end<|im_end|>"] and record.rewritten == 1
    assert "edited" in talk.text(record.stretches[1])
    spoken = [turn.message["content"] for turn in record.turns if turn.message["role"] == "assistant"]
    assert spoken == ["so", "then", "end"]


def test_a_conversation_of_its_own_is_no_rewriting(talk):
    talk.ask([ASK], "so")
    helper = [{"role": "system", "content": "help"}, {"role": "user", "content": "sum up"}]
    talk.ask(helper, "well")
    record = talk.recorded.whole()
    assert len(record.stretches) == 2 and record.rewritten == 0
    assert [turn.message["content"] for turn in record.turns] == ["so", "help", "sum up", "well"]


def test_a_branch_goes_on_from_the_recorded_ids(talk):
    """Two answers to one turn: the second context is the recorded ids up to there, and no turn is learned twice."""
    said = talk.ask([ASK], CALL)
    history = [ASK, resent(said)]
    first, second = talk.open([*history, answer(said)]), talk.open([*history, answer(said, "43")])
    other = talk.say(second, "b")
    talk.say(first, "a")
    talk.ask([*history, answer(said, "43"), resent(other), ASK], "c")
    record = talk.recorded.whole()
    assert talk.written(record) == [f"{CALL}<|im_end|>a<|im_end|>", "b<|im_end|>c<|im_end|>"] and record.rewritten == 0
    spelled = talk.speller.ids(CALL)
    one, two = record.stretches
    assert (
        two.prompt_ids == one.prompt_ids + one.ids[: len(spelled) + 1]
        and two.prompt_ids[-len(spelled) - 1 : -1] == spelled
    )
    assert "<r>43</r>" in talk.text(two) and "<r>42</r>" not in talk.text(two)


def test_a_template_that_drops_thoughts_forks_or_keeps_them():
    for past, written in (("template", 2), ("sampled", 1)):
        talk = Talk("forgetful", past=past)
        said = talk.ask([ASK], "<think>\nhm\n</think>\n\nso")
        assert (said["content"], said["reasoning_content"]) == ("so", "hm")
        del said["reasoning_content"]  # as most agents send it back
        talk.ask([ASK, said, ASK], "then")
        assert len(talk.recorded.whole().stretches) == written


def test_tools_that_are_not_to_be_called_are_words_on_the_same_context(talk):
    said = talk.ask([ASK], "so")
    said = talk.ask([ASK, said, ASK], CALL, tool_choice="none")
    assert said == {"role": "assistant", "content": CALL}
    assert len(talk.recorded.whole().stretches) == 1


def test_a_call_that_cannot_be_read_is_words_and_counted(talk):
    broken = "<tool_call>\n{so}\n</tool_call>"
    said = talk.ask([ASK], broken)
    assert said == {"role": "assistant", "content": broken}
    talk.ask([ASK, said, ASK], CALL)
    assert (talk.recorded.calls, talk.recorded.broken) == (2, 1) and len(talk.recorded.whole().stretches) == 1


def test_a_turn_that_a_limit_broke_off_calls_nothing(talk):
    said = talk.say(talk.open([ASK], max_tokens=len(talk.speller.ids(CALL)) - 2), CALL, stopped=False)
    assert "tool_calls" not in said and not talk.recorded.is_cut  # the agent's own limit
    talk = Talk(budget=5)
    talk.say(talk.open([ASK]), CALL)
    assert talk.recorded.is_cut and len(talk.recorded.whole().stretches[0].ids) == 5


def test_two_at_once_are_recorded_as_one_after_the_other():
    """The question stands once before rewards, whoever asks it twice at a time."""
    spoken = []
    for at_once in (False, True):
        talk = Talk()
        first = talk.open([ASK])
        if not at_once:
            talk.say(first, "a")
        second = talk.open([ASK])
        if at_once:
            talk.say(first, "a")
        talk.say(second, "b")
        record = talk.recorded.whole()
        spoken.append([turn.message["content"] for turn in record.turns])
        assert talk.written(record) == ["a<|im_end|>", "b<|im_end|>"] and record.rewritten == 0
    assert spoken == [["a", "b"]] * 2


@pytest.mark.parametrize("heard", [False, True])
@pytest.mark.parametrize("place", ["beginning", "end", "branch"])
def test_what_is_taken_back_leaves_no_trace(place, heard):
    def told(talk, word):
        return [ASK, said, {"role": "user", "content": word}]

    talk, plain = Talk(), Talk()
    for one in (talk, plain):
        if place != "beginning":
            said = resent(one.ask([ASK], "well"))
        if place == "branch":
            one.ask(told(one, "or?"), "no")
        asked = [ASK] if place == "beginning" else told(one, "and?")
        if one is talk:
            lost = one.open(asked)
            if heard:
                one.say(lost, CALL, stopped=False)
            one.recorded.take_back(lost)
        one.ask(asked, "yes")
    found, wanted = talk.recorded.whole(), plain.recorded.whole()
    assert found.turns == wanted.turns and found.stretches == wanted.stretches
    assert (talk.recorded.calls, talk.recorded.is_cut, len(talk.recorded.points)) == (
        plain.recorded.calls, plain.recorded.is_cut, len(plain.recorded.points),
    )  # fmt: skip


def test_the_budget_holds_for_all_calls_together():
    talk = Talk(budget=12)
    said = talk.ask([ASK], "so")
    with pytest.raises(Refused, match="max_completion_length of 12") as caught:
        talk.open([ASK, said, {"role": "user", "content": "a long question that does not fit at all"}])
    assert caught.value.code == "context_length_exceeded" and talk.recorded.is_cut
    first, second = talk.open([{"role": "user", "content": "a"}]), talk.open([{"role": "user", "content": "b"}])
    talk.say(first, "abcdefgh" * 3)
    with pytest.raises(Refused):
        talk.say(second, "b")
    assert sum(len(stretch.ids) for stretch in talk.recorded.whole().stretches) == 12
    with pytest.raises(Refused, match="positions"):
        Talk(positions=4).open([ASK])


def test_a_conversation_that_the_template_refuses_is_refused_in_its_words():
    call = {"type": "function", "id": "1", "function": {"name": "add", "arguments": "{}"}}
    with pytest.raises(Refused, match="one call at once"):
        Talk("single").open([ASK, {"role": "assistant", "tool_calls": [call, call]}, ASK])
