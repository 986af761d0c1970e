from __future__ import annotations

import pytest

from strop.rewards import JudgeReward, RewardSet, RuleJudge
from strop.rewards.judge_reward import groups_of


def longer(prompt, first, second):
    if "?" in first + second:
        return None
    return 0 if len(first) > len(second) else 1


def test_two_completions_give_p_and_one_minus_p():
    assert JudgeReward(RuleJudge(longer))(["p", "p", "q", "q"], ["a", "bb", "ccc", "d"]) == [0.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize("size", [2, 3, 4, 5, 6])
def test_everybody_meets_everybody_once(size):
    met = []

    def note(prompt, first, second):
        met.append(tuple(sorted((first, second))))
        return 0 if len(first) > len(second) else 1

    completions = ["x" * (n + 1) for n in range(size)]
    rewards = JudgeReward(RuleJudge(note))(["p"] * size, completions)
    assert len(met) == len(set(met)) == size * (size - 1) // 2
    assert rewards == pytest.approx([n / (size - 1) for n in range(size)])


def test_fewer_opponents_are_shared_fairly():
    met = []

    def note(prompt, first, second):
        met.append((first, second))
        return 0

    JudgeReward(RuleJudge(note), max_opponents=1)(["p"] * 6, list("abcdef"))
    assert len(met) == 6
    assert all(sum(name in pair for pair in met) == 2 for name in "abcdef")


def test_identical_completions_tie_and_silence_abstains():
    reward = JudgeReward(RuleJudge(longer))
    assert reward(["p", "p"], ["a", "a"]) == [0.5, 0.5]
    assert reward(["p", "p", "p"], ["aa", "b", "?"]) == [1.0, 0.0, None]
    assert reward(["alone"], ["a"]) == [None]


def test_groups_are_runs_of_equal_prompts():
    chat = [{"role": "user", "content": "hi"}]
    assert groups_of(["a", "a", "b", chat, chat, "a"]) == [range(0, 2), range(2, 3), range(3, 5), range(5, 6)]
    assert groups_of([]) == []


def test_a_failing_judge_fails_its_whole_batch():
    def broken(prompt, first, second):
        raise ConnectionError("judge is down")

    with RewardSet(RuleJudge(broken), on_error="skip") as rewards:
        table = rewards.score(["p", "p"], ["a", "b"])
    assert table.counts["RuleJudge"].errors == 2 and table.counts["RuleJudge"].abstained == 0
    assert "judge is down" in table.failures[0]
