from __future__ import annotations

import threading

import numpy as np
import pytest
from tests.support.patience import with_patience

from strop.errors import ConfigError, SetupError
from strop.rewards import RewardSet
from strop.rewards.accuracy import accuracy_reward, get_cosine_scaled_reward, reasoning_accuracy_reward
from strop.time_limit import call_with_limit

pytest.importorskip("math_verify")


def test_equal_values_are_equal_however_written():
    completions = [
        r"My answer is \boxed{\frac{1}{3}}",
        r"My answer is \boxed{\frac{1}{2}}",
        r"The final answer is $\frac{2}{6}$.",
        [{"role": "assistant", "content": r"So \boxed{1/3}"}],
        "no answer at all",
    ]
    assert accuracy_reward(completions, solution=[r"\frac{1}{3}"] * 5) == [1.0, 0.0, 1.0, 1.0, 0.0]


def test_golds_that_cannot_be_read_abstain():
    completions = [r"\boxed{1}"] * 4
    assert accuracy_reward(completions, solution=["some words", "", None, 1]) == [None, None, None, 1.0]


def test_what_was_parsed_is_logged():
    logged = {}
    accuracy_reward([r"\boxed{2}", "?"], solution=["2", "words"], log_extra=logged.__setitem__)
    assert logged == {
        "solution": ["2", "words"],
        "gold_parsed": ["2", "[not parsed]"],
        "answer_parsed": ["2", "[not parsed]"],
    }


def test_reasoning_is_left_out():
    completions = [
        r"<think> \boxed{5} </think> The answer is \boxed{\frac{1}{3}}",
        r"<think> \boxed{\frac{1}{3}} </think> The answer is \boxed{5}",
        r"<think> \boxed{\frac{1}{3}}",
        r"<think> a </think> \boxed{5} </think> \boxed{\frac{1}{3}}",
    ]
    assert reasoning_accuracy_reward(completions, solution=["1/3"] * 4) == [1.0, 0.0, 0.0, 1.0]
    assert reasoning_accuracy_reward(completions, solution=["words"] * 4) == [None] * 4
    own = reasoning_accuracy_reward(
        [r"\boxed{1} END \boxed{2} STOP \boxed{3}"], solution=["3"], reasoning_delimiters=["STOP", "END"]
    )
    assert own == [1.0]


def test_cosine_scaled_reward():
    reward = get_cosine_scaled_reward(max_len=100)
    right, wrong = r"\boxed{\frac{1}{3}}", r"\boxed{\frac{1}{2}}"
    lengths = [0, 50, 100, 1000]
    ids = [[1] * n for n in lengths]
    solution = [r"\frac{1}{3}"] * 4
    assert reward([right] * 4, solution, ids) == pytest.approx([1.0, 0.75, 0.5, 0.5])
    assert reward([wrong] * 4, solution, ids) == pytest.approx([-1.0, -0.75, -0.5, -0.5])
    assert reward([right], ["words"], [[1]]) == [None]
    with pytest.raises(ConfigError, match="max_len is 0"):
        get_cosine_scaled_reward(0)


def test_it_works_in_threads_and_under_a_time_limit():
    result = []
    thread = threading.Thread(target=lambda: result.append(accuracy_reward([r"\boxed{1}"], solution=["1"])))
    thread.start()
    thread.join()
    assert result == [[1.0]]
    assert call_with_limit(lambda: accuracy_reward([r"\boxed{1}"], solution=["1"]), 30.0) == [1.0]


@with_patience(1.0, 20.0)
def test_an_answer_that_takes_for_ever_costs_its_row_only(seconds):
    tower = r"\boxed{9^{9^{9^{9}}}}"
    with RewardSet("accuracy_reward", on_error="skip", timeout_seconds=seconds) as rewards:
        assert rewards.places["accuracy_reward"] == "this process"
        table = rewards.score(["p"] * 2, [tower, r"\boxed{1}"], None, {"solution": ["1", "1"]})
    assert table.values[0, 1] == 1.0
    assert np.isnan(table.values[0, 0]) and table.counts["accuracy_reward"].timeouts == 1


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "math_verify", None)
    with pytest.raises(SetupError, match="pip install math-verify"):
        accuracy_reward(["x"], solution=["1"])
