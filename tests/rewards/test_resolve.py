from __future__ import annotations

import functools
import sys

import pytest
import torch

from strop.errors import ConfigError, SetupError
from strop.rewards.accuracy import accuracy_reward
from strop.rewards.judge_reward import JudgeReward
from strop.rewards.judges import RandomJudge
from strop.rewards.model_reward import ModelReward
from strop.rewards.process_reward import ProcessReward
from strop.rewards.resolve import name_of, resolve_rewards
from strop.rewards.scorer import RewardSet
from strop.rewards.verifiers import get_length_reward, get_soft_overlong_punishment, think_format_reward


def first(completions, **kwargs):
    return [0.0 for _ in completions]


class Instance:
    def __call__(self, completions):
        return [0.0 for _ in completions]


def names(*rewards):
    return list(resolve_rewards(list(rewards)))


def test_names_come_from_functions_partials_and_classes_and_are_distinct():
    assert names(first, functools.partial(first), Instance(), first) == ["first", "first_2", "Instance", "first_3"]
    assert names(get_length_reward(3), get_soft_overlong_punishment(5, 1)) == [
        "length_reward",
        "soft_overlong_punishment_reward",
    ]
    assert name_of(lambda c: c) == "<lambda>"


def test_one_reward_needs_no_list():
    assert resolve_rewards(first) == {"first": first}


def test_strings_name_verifiers_functions_and_tasks():
    assert resolve_rewards(["think_format_reward", "accuracy_reward"]) == {
        "think_format_reward": think_format_reward,
        "accuracy_reward": accuracy_reward,
    }
    dotted = resolve_rewards("strop.rewards.verifiers.think_format_reward")
    colon = resolve_rewards("strop.rewards.verifiers:think_format_reward")
    assert dotted == colon == {"think_format_reward": think_format_reward}


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("acuracy_reward", ConfigError, "Did you mean 'accuracy_reward'"),
        ("strop.rewards.verifiers.no_such", SetupError, "cannot be imported"),
        ("no_such_module.reward", SetupError, "cannot be imported"),
        ("strop.rewards.named_function.VERIFIERS", ConfigError, "not a function"),
        ("./no/such/directory", SetupError, "cannot be loaded"),
    ],
)
def test_strings_that_name_nothing(name, error, said):
    with pytest.raises(error, match=said):
        resolve_rewards(name)


HELPED = """
from __future__ import annotations
from dataclasses import dataclass
from beside_it import POINTS

@dataclass
class Point:
    value: float

def scored(completions, **kwargs):
    return [Point(POINTS).value for _ in completions]
"""


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "beside_it.py").write_text("POINTS = 2.5")
    (tmp_path / "random.py").write_text(HELPED)  # the name of a module of Python's
    (tmp_path / "own_rewards.py").write_text(HELPED)
    yield tmp_path
    for name in ("beside_it", "own_rewards"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    "name",
    ["own_rewards.scored", "own_rewards:scored", "random.py:scored", "./random.py:scored", "{}/random.py:scored"],
)
def test_functions_are_found_from_the_working_directory(name, in_folder):
    rewards = resolve_rewards(name.format(in_folder))
    assert list(rewards) == ["scored"] and rewards["scored"](["a", "b"]) == [2.5, 2.5]


def test_a_function_of_a_file_runs_in_a_process_of_its_own(in_folder):
    rewards = RewardSet("random.py:scored", isolate=True, timeout_seconds=60.0)
    assert rewards.score(["p"], ["a"]).values.tolist() == [[2.5]]


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("random.py", ConfigError, "random.py:FUNCTION"),
        ("no_such.py:scored", SetupError, "there is no file no_such.py"),
        ("random.py:score", SetupError, "no 'score'. Did you mean 'scored'"),
        ("broken.py:scored", SetupError, "ZeroDivisionError"),
    ],
)
def test_files_that_hold_no_such_function(name, error, said, in_folder):
    (in_folder / "broken.py").write_text("1 / 0")
    with pytest.raises(error, match=said):
        resolve_rewards(name)


def test_models_and_judges_are_wrapped(tokenizer, make_model):
    judge = RandomJudge()
    made = resolve_rewards(
        [make_model("score"), make_model("step", labels=2), judge, first], [tokenizer, tokenizer, None, None]
    )
    assert [type(reward) for reward in list(made.values())[:3]] == [ModelReward, ProcessReward, JudgeReward]
    assert made["RandomJudge"].judge is judge and made["first"] is first


def test_a_model_directory_is_loaded_with_its_tokenizer(tokenizer, make_model, tmp_path):
    path = tmp_path / "my-rm"
    model = make_model("score")
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    rewards = resolve_rewards(str(path), device="cpu", model_init_kwargs={"dtype": torch.float64})
    expected = ModelReward(model, tokenizer)(["p"], ["abc"])
    assert rewards["my-rm"](prompts=["p"], completions=["abc"]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("nothing", [None, [], [None]])
def test_nothing_is_refused(nothing):
    with pytest.raises(ConfigError, match="No reward was given"):
        resolve_rewards(nothing)


def test_what_is_no_reward_is_refused():
    with pytest.raises(ConfigError, match="42 is not a reward"):
        resolve_rewards([42])


def test_processing_classes_must_align(tokenizer):
    with pytest.raises(ConfigError, match="2 reward processing classes were given for 1"):
        resolve_rewards([first], [tokenizer, None])


def test_one_processing_class_is_not_spread_over_two_models(tokenizer, make_model):
    models = [make_model("score"), make_model("score", seed=1)]
    with pytest.raises(ConfigError, match=r"One reward processing class was given for 2 reward models.*a list"):
        resolve_rewards([*models, first], tokenizer)
    assert len(resolve_rewards(models, [tokenizer, tokenizer])) == 2
    model, plain = resolve_rewards([models[0], first], tokenizer).values()
    assert model([""], ["a"]) == ModelReward(models[0], tokenizer)([""], ["a"]) and plain is first


class LengthJudge:
    """As judges of TRL are: the index of the best completion, -1 for no verdict."""

    def judge(self, prompts, completions, shuffle_order=True):
        return [-1 if "?" in first + second else int(len(second) > len(first)) for first, second in completions]


def test_judges_of_trl_are_taken_as_they_are():
    reward = resolve_rewards(LengthJudge())["LengthJudge"]
    assert type(reward) is JudgeReward
    assert reward(["p", "p", "q", "q"], ["a", "bb", "c", "?"]) == [0.0, 1.0, None, None]


def test_missing_packages_are_named_at_set_up():
    def needs(completions):
        return []

    needs.requires = {"no_such_package_here": "no-such-package"}
    with pytest.raises(SetupError, match="'needs' needs no-such-package: pip install no-such-package"):
        resolve_rewards(needs)
