from __future__ import annotations

import pickle
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strop.errors import ConfigError
from strop.rewards.verifiers import (
    exact_match_reward,
    get_length_reward,
    get_repetition_penalty_reward,
    get_soft_overlong_punishment,
    length_reward,
    think_format_reward,
)

PIECES = ["<think>", "</think>", "a", "\n", " "]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<think>\nwhy\n</think>\nanswer", 1.0),
        ("<think></think>", 1.0),
        ("<think>why answer", 0.0),
        ("so <think>why</think> answer", 0.0),
        ("<think>a<think>b</think> c", 0.0),
        ("<think>a</think> b <think>", 0.0),
        ("<think>a</think> b </think> c", 1.0),
        ("", 0.0),
    ],
)
def test_think_format(text, value):
    conversation = [{"role": "assistant", "content": text}]
    assert think_format_reward([text, conversation], prompts=["", ""]) == [value, value]


@settings(deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(PIECES), max_size=8))
def test_think_format_means_what_its_pattern_means(pieces):
    text = "".join(pieces)
    matched = re.match(r"<think>(?!.*<think>).*?</think>.*", text, re.DOTALL)
    assert think_format_reward([text]) == [float(matched is not None)]


def test_exact_match():
    completions = [" 42\n", "42", [{"role": "assistant", "content": "43"}], "anything"]
    assert exact_match_reward(completions, answer=[42, "42 ", "42", None]) == [1.0, 1.0, 0.0, None]


def test_length_reward():
    ids = [[0] * n for n in (0, 5, 10, 15, 20, 100)]
    expected = [-1.0, -0.5, 0.0, -0.5, -1.0, -1.0]
    assert get_length_reward(10)(completion_ids=ids) == expected
    assert length_reward(ids, target_length=[10] * 6) == expected
    assert length_reward([[1]], target_length=[None]) == [None]


def test_repetition_penalty():
    reward = get_repetition_penalty_reward(ngram_size=2, max_penalty=-1.0)
    assert reward(completion_ids=[[1, 2, 3, 4], [5, 5, 5, 5, 5], [7], []]) == [0.0, -0.75, 0.0, 0.0]
    assert str(reward(completion_ids=[[1, 2, 3]])[0]) == "0.0"
    assert get_repetition_penalty_reward(1, -2.0)(completion_ids=[[1, 1, 2, 2]]) == [-1.0]


def test_soft_overlong_punishment_has_the_papers_values():
    reward = get_soft_overlong_punishment(max_completion_len=100, soft_punish_cache=20)
    assert reward(completion_ids=[[0] * n for n in (80, 90, 100, 101)]) == [0.0, -0.5, -1.0, -1.0]
    hard = get_soft_overlong_punishment(10, 0)
    assert hard(completion_ids=[[0] * 10, [0] * 11]) == [0.0, -1.0]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: get_repetition_penalty_reward(0, 1.0), "ngram_size is 0.*\n.*max_penalty is 1.0"),
        (lambda: get_soft_overlong_punishment(10, 11), "soft_punish_cache is 11"),
        (lambda: get_soft_overlong_punishment(0, 0), "max_completion_len is 0"),
        (lambda: get_length_reward(0), "target_length is 0"),
    ],
)
def test_wrong_settings(make, said):
    with pytest.raises(ConfigError, match=said):
        make()


def test_made_rewards_can_be_pickled():
    for reward in (get_length_reward(2), get_repetition_penalty_reward(), get_soft_overlong_punishment(3, 1)):
        again = pickle.loads(pickle.dumps(reward))
        assert again(completion_ids=[[1, 1, 1, 1]]) == reward(completion_ids=[[1, 1, 1, 1]])
