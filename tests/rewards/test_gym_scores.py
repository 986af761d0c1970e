from __future__ import annotations

import json
import pickle

import pytest

from strop.errors import ConfigError, DataError
from strop.rewards.gym_scores import reasoning_gym_reward
from strop.rewards.resolve import resolve_rewards

reasoning_gym = pytest.importorskip("reasoning_gym")


@pytest.fixture(scope="module")
def items():
    return [reasoning_gym.create_dataset("spell_backward", seed=3, size=2)[index] for index in range(2)]


def columns(items, encode=lambda value: value):
    return {
        "question": [item["question"] for item in items],
        "answer": [item["answer"] for item in items],
        "metadata": [encode(item["metadata"]) for item in items],
    }


@pytest.mark.parametrize("encode", [lambda value: value, json.dumps])
def test_the_tasks_own_score(items, encode):
    reward = reasoning_gym_reward("spell_backward")
    completions = [f" {items[0]['answer']}\n", "wrong"]
    assert reward(completions, **columns(items, encode)) == [1.0, 0.0]
    assert reward(completions, entry=[json.dumps(item) for item in items]) == [1.0, 0.0]


def test_the_answer_between_tags(items):
    reward = reasoning_gym_reward("spell_backward", answer_tag="answer")
    answer = items[0]["answer"]
    completions = [f"<answer>no</answer> <answer> {answer} </answer>", f"{answer}", f"<answer>{answer}"]
    three = [items[0]] * 3
    assert reward(completions, **columns(three)) == [1.0, 0.0, 0.0]


def test_it_can_be_pickled_and_asked_for_by_name(items):
    named = resolve_rewards("reasoning_gym:spell_backward")["spell_backward"]
    again = pickle.loads(pickle.dumps(named))
    assert again([items[0]["answer"]], **columns(items[:1])) == [1.0]


def test_unknown_tasks_and_missing_columns(items):
    with pytest.raises(ConfigError, match="Did you mean 'spell_backward'"):
        reasoning_gym_reward("spell_backwards")
    with pytest.raises(DataError, match="needs the columns 'answer' and 'metadata'"):
        reasoning_gym_reward("spell_backward")(["x"], answer=["y"])
