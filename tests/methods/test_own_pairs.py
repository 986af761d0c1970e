"""Judges before pairs: whose probability it is, what a tie does, what cannot be meant."""

from __future__ import annotations

import math

import pytest
import torch

from strop import NashMDConfig, XPOConfig
from strop.errors import ConfigError
from strop.methods.own_pairs import judged, preferences
from strop.online.groups import Group
from strop.records import Example
from strop.rewards import Judge, RuleJudge
from strop.testing.cases import make_trainer, rows_for

PAIRS = ("online-dpo", "nash-md", "xpo")


class Fixed(Judge):
    """Gives the same probability to every pair, and counts them."""

    def __init__(self, probability):
        self.probability, self.asked = probability, []

    def judge_pairs(self, prompts, pairs):
        self.asked += list(zip(prompts, pairs, strict=True))
        return [self.probability] * len(pairs)


def group(*completions):
    return Group(Example([1], []), [list(c) for c in completions], [], ["stop"] * len(completions))


def trainer_with(judge, verb, tmp_path, **settings):
    rows = [{"prompt": row["prompt"]} for row in rows_for(verb, 4)]
    trainer = {"reward_funcs": judge}
    return make_trainer(verb, tmp_path, rows=rows, trainer=trainer, max_completion_length=6, **settings)


def test_shares_of_duels():
    three = group([1], [2], [3])
    judged(three, [0.9, 0.2, math.nan])  # 0-1, 0-2, 1-2
    assert three.rewards.tolist() == pytest.approx([(0.9 + 0.2) / 2, 0.1, 0.8])
    alone = group([1], [2])
    judged(alone, [math.nan])
    assert alone.rewards.isnan().all() and preferences([alone], judge=True) == [None]


def test_a_judge_gives_the_probability_and_rewards_its_logit():
    pair = group([1], [2])
    judged(pair, [0.7])
    assert preferences([pair], judge=True) == [pytest.approx(0.7)]
    pair.rewards = torch.tensor([2.0, 0.5])
    assert preferences([pair], judge=False) == [pytest.approx(1 / (1 + math.exp(-1.5)))]
    pair.rewards = torch.tensor([1e6, 0.0])
    assert preferences([pair], judge=False) == [pytest.approx(1.0)]


@pytest.mark.parametrize("verb", ["nash-md", "xpo"])
def test_the_policy_comes_first_before_the_judge(verb, tmp_path):
    judge = Fixed(0.9)
    trainer = trainer_with(judge, verb, tmp_path)
    groups = trainer.rollout([trainer.train_dataset[0]], 1, training=True)
    trainer.score_groups(groups, "train")
    (prompt, pair), *rest = judge.asked
    decoded = trainer.processing_class.batch_decode(groups[0].completions, skip_special_tokens=True)
    assert not rest and prompt == trainer.train_dataset[0].extras["prompt"] and list(pair) == decoded
    (tree,) = trainer.make_trees(groups, training=True)
    assert (tree.sampled.probability, tree.sampled.policy_wins) in ((pytest.approx(0.9), None), (None, True))


@pytest.mark.parametrize("verb", PAIRS)
@pytest.mark.parametrize("verdict", [None, 0.5], ids=["silence", "tie"])
def test_no_verdict_teaches_nothing(verb, verdict, tmp_path):
    trainer = trainer_with(Fixed(verdict), verb, tmp_path, max_steps=1, learning_rate=1.0)
    groups = trainer.rollout([trainer.train_dataset[i] for i in range(4)], 2, training=True)
    trainer.score_groups(groups, "train")
    trees = trainer.make_trees(groups, training=True)
    if verb == "nash-md" and verdict == 0.5:  # a tie still has a KL to pay
        assert [tree.sampled.probability for tree in trees] == [0.5] * 4
    else:
        assert trees == []
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.train()
    if verb != "nash-md":
        assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))


def test_more_than_two_completions_all_meet_each_other(tmp_path):
    judge = RuleJudge(lambda prompt, first, second: int(len(second) > len(first)))
    trainer = trainer_with(judge, "online-dpo", tmp_path, num_generations=4)
    groups = trainer.rollout([trainer.train_dataset[0]] * 2, 4, training=True)  # equal prompts stay two groups
    trainer.score_groups(groups, "train")
    for g in groups:
        lengths = [len(t) for t in trainer.processing_class.batch_decode(g.completions, skip_special_tokens=True)]
        best = max(range(4), key=lambda i: float(g.rewards[i]))
        assert lengths[best] == max(lengths)
    for tree in trainer.make_trees(groups, training=True):
        first, second = (
            len(t) for t in trainer.processing_class.batch_decode(tree.completions, skip_special_tokens=True)
        )
        assert first > second


@pytest.mark.parametrize("verb", PAIRS)
def test_a_judge_trains_and_evaluates(verb, tmp_path):
    judge = RuleJudge(lambda prompt, first, second: int(len(second) > len(first)))
    trainer = trainer_with([judge], verb, tmp_path, max_steps=2)
    trainer.train()
    metrics = trainer.evaluate(eval_dataset=[{"prompt": "ant"}, {"prompt": "bee"}])
    assert "eval_rewards/RuleJudge/mean" in metrics and math.isfinite(metrics["eval_reward"])


@pytest.mark.parametrize(
    "settings", [{"missing_eos_penalty": 1.0}, {"reward_weights": [2.0]}, {"reward_on_error": "penalize"}], ids=str
)
def test_numbers_made_of_verdicts_are_refused(settings, tmp_path):
    with pytest.raises(ConfigError, match="do not go with a judge"):
        trainer_with(Fixed(0.9), "online-dpo", tmp_path, **settings)


def test_one_completion_has_nobody_to_meet(tmp_path):
    with pytest.raises(ConfigError, match="set num_generations to 2 or more"):
        trainer_with(Fixed(0.9), "ppo", tmp_path)


class LongerOfTwo:
    """As judges of TRL are."""

    def judge(self, prompts, completions, shuffle_order=True):
        return [int(len(second) > len(first)) for first, second in completions]


def test_a_judge_of_trl_judges_pairs(tmp_path):
    trainer = trainer_with(LongerOfTwo(), "online-dpo", tmp_path)
    trainer.train()
    assert trainer.has_judge and trainer.rewards.names == ["LongerOfTwo"]


@pytest.mark.parametrize("config", [XPOConfig, NashMDConfig])
@pytest.mark.parametrize(
    ("name", "value"),
    [("tool_timeout", 5.0), ("tools_at_once", 2), ("environment_isolation", True), ("past_turns", "sampled")],
)
def test_settings_of_tools_are_refused_where_there_are_none(config, name, value, tmp_path):
    with pytest.raises(ConfigError, match=f"{name}.*use OnlineDPOTrainer"):
        config(output_dir=str(tmp_path), use_cpu=True, **{name: value})
