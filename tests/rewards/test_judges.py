from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strop.errors import ConfigError, RewardError
from strop.rewards.judges import Judge, RandomJudge, RankJudge, RewardModelJudge, RuleJudge, as_judge, both_orders


def longer(prompt, first, second):
    if "tie" in prompt:
        return None
    return 0 if len(first) > len(second) else 1


def lengths(prompts, completions):
    return [None if c == "?" else float(len(c)) for c in completions]


def test_a_rule_judges_texts():
    judge = RuleJudge(longer)
    prompts = ["p", "p", "tie", "p", [{"role": "user", "content": "p"}]]
    said = [{"role": "assistant", "content": "abc"}]
    pairs = [("aa", "b"), ("a", "bb"), ("a", "bb"), ("same", "same"), (said, "d")]
    assert judge.probabilities(prompts, pairs) == [1.0, 0.0, None, 0.5, 1.0]
    assert judge.compare(prompts, pairs) == [0, 1, None, None, 0]


def test_judges_read_raw_text():
    seen = []

    def note(prompt, first, second):
        seen.append((prompt, first, second))
        return 0

    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    RuleJudge(note).compare([messages], [([{"role": "assistant", "content": "yo"}], "hey")])
    assert seen == [("System: Be brief.\n\nUser: hi", "yo", "hey")]


def test_identical_completions_are_not_shown_to_the_judge():
    def never(prompt, first, second):
        raise AssertionError("asked")

    assert RuleJudge(never).compare(["p", "q"], [("a", "a"), ("b", "b")]) == [None, None]
    assert RuleJudge(never).probabilities([], []) == []


def test_a_random_judge_repeats_itself_by_seed():
    pairs = [("a", "b")] * 200
    first = RandomJudge(seed=3).compare(["p"] * 200, pairs)
    assert first == RandomJudge(seed=3).compare(["p"] * 200, pairs) != RandomJudge(seed=4).compare(["p"] * 200, pairs)
    assert 60 < sum(first) < 140


def test_a_reward_judges_by_bradley_terry():
    judge = RewardModelJudge(lengths)
    assert judge.probabilities(["p"] * 3, [("aaa", "b"), ("b", "aaa"), ("a", "?")]) == [
        pytest.approx(1 / (1 + math.exp(-2))),
        pytest.approx(1 / (1 + math.exp(2))),
        None,
    ]
    assert judge.compare(["p"] * 2, [("aa", "bb"), ("a", "bb")]) == [None, 1]
    halved = RewardModelJudge(lengths, temperature=2.0)
    assert halved.probabilities(["p"], [("aaa", "b")]) == [pytest.approx(1 / (1 + math.exp(-1)))]
    assert RewardModelJudge(lambda prompts, completions: [1e6, -1e6]).probabilities(["p"], [("a", "b")]) == [1.0]
    assert RewardModelJudge(lambda prompts, completions: [-1e6, 1e6]).probabilities(["p"], [("a", "b")]) == [0.0]
    with pytest.raises(ConfigError, match="temperature is 0"):
        RewardModelJudge(lengths, temperature=0)


@settings(deadline=None, derandomize=True)
@given(st.floats(0, 1), st.floats(0, 1))
def test_averaging_both_orders_is_antisymmetric(first_as_a, first_as_b):
    (there,) = both_orders([first_as_a], [first_as_b])
    (back,) = both_orders([first_as_b], [first_as_a])
    assert there + back == pytest.approx(1.0, abs=1e-12)


def test_a_pure_position_bias_averages_out():
    assert both_orders([1.0, 0.0, None, 1.0], [1.0, 0.0, 0.0, 0.0]) == [0.5, 0.5, None, 1.0]


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ([], "list of 1 verdicts"),
        ([1.0, 0.0], "list of 1 verdicts"),
        (0.5, "list of 1 verdicts"),
        ([2], "for pair 0 it gave a int: 2"),
        ([float("nan")], "for pair 0"),
        (["first"], "for pair 0 it gave a str"),
    ],
)
def test_wrong_verdicts_are_refused(answers, said):
    class Wrong(Judge):
        def judge_pairs(self, prompts, pairs):
            return answers

    with pytest.raises(RewardError, match=said):
        Wrong().compare(["p"], [("a", "b")])


def test_a_rule_must_name_a_winner():
    with pytest.raises(RewardError, match=r"0, 1 or None; for pair 0 it gave a int: -1"):
        RuleJudge(lambda *_: -1).compare(["p"], [("a", "b")])
    with pytest.raises(RewardError, match="1 prompts were given with 2 pairs"):
        RandomJudge().compare(["p"], [("a", "b")] * 2)


class Ranks:
    def __init__(self, answers):
        self.answers, self.given = answers, []

    def judge(self, prompts, completions, shuffle_order=True):
        self.given.append((prompts, completions))
        return self.answers


class CallableRanks(Ranks):
    """A reward that has a method of this name."""

    def __call__(self, completions):
        return self.answers


def test_a_judge_of_trl_ranks_texts():
    ranks = Ranks([0, 1, -1])
    judge = as_judge(ranks)
    chat = [{"role": "user", "content": "p"}], ([{"role": "assistant", "content": "a"}], "b")
    prompts, pairs = zip(chat, ("q", ("c", "d")), ("r", ("e", "f")), ("s", ("same", "same")), strict=True)
    assert judge.probabilities(prompts, pairs) == [1.0, 0.0, None, 0.5]
    assert judge.compare(prompts, pairs) == [0, 1, None, None]
    assert ranks.given[0] == (["p", "q", "r"], [["a", "b"], ["c", "d"], ["e", "f"]])
    assert judge.name == "Ranks" and as_judge(judge) is judge
    assert as_judge(longer) is None and as_judge(Ranks) is None and as_judge(CallableRanks([0])) is None


@pytest.mark.parametrize("answers", [[2], [[0, 1]], ["first"], [0.5], [True], [None]], ids=str)
def test_ranks_that_are_none_are_refused(answers):
    with pytest.raises(RewardError, match=r"Ranks.*must return 0, 1, or -1 where it cannot say.*pair 0"):
        RankJudge(Ranks(answers)).compare(["p"], [("a", "b")])
    with pytest.raises(RewardError, match="2 verdicts"):
        RankJudge(Ranks([0])).compare(["p", "q"], [("a", "b"), ("c", "d")])
