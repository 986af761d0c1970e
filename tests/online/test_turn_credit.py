"""Credit by turn: the advantages of turns by hand, the gradient they give, and what they cannot be used with."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path

import pytest
import torch
from tests.support.conversations import Script
from tests.support.processes import run_ranks
from tests.support.templates import KINDS, tokenizer_with

from strop import GRPOConfig, OnlineDPOConfig, PPOConfig
from strop.agents import Rewarded
from strop.errors import ConfigError, RewardError
from strop.online.groups import Group
from strop.online.turn_credit import rewards_of_turns
from strop.records import Example
from strop.testing.cases import largest_difference, make_trainer, step_gradients
from strop.testing.tiny import tiny_model

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 20, "b": 22}}\n</tool_call>'
REWARDS = {"a": [1.0, 2.0], "b": [0.0, 0.0, 5.0]}
TO_COME = {"rloo": [[-2.0, -3.0], [2.0, 3.0, 5.0]], "grpo": [[-1.0, -1.5], [1.0, 1.5, 2.5]]}
"""3 2 0 against 5 5 5: less the other's, or less the mean of both."""


class Steps:
    """Two conversations, told apart by their first word, of two and of three rewarded turns."""

    def reset(self, **row):
        self.said = []

    def step(self, text):
        self.said.append(text[0])
        rewards = REWARDS[self.said[0]]
        return f"turn {len(self.said)}", rewards[len(self.said) - 1], len(self.said) == len(rewards)


def add(a: int, b: int):
    """Add two numbers.

    Args:
        a: the first
        b: the second
    """
    return Rewarded(a + b, 0.5)


GIVEN = ("tools", "reward_funcs", "environment_factory", "rollout_func")


def build(tmp_path, verb, kind="gathered", say=lambda text, place: "ab"[place] * (place + 2), rows=None, **options):
    tokenizer, _ = tokenizer_with(KINDS[kind])
    given = {"reward_funcs": None, **{name: options.pop(name) for name in GIVEN if name in options}}
    own = {"grpo": {"scale_rewards": "none"}, "rloo": {"beta": 0.0}}[verb]
    made = make_trainer(
        verb, tmp_path, rows=rows or [{"prompt": [{"role": "user", "content": f"go {i}"}]} for i in range(2)],
        model=tiny_model("llama", dtype=torch.float64, vocab_size=len(tokenizer)), tokenizer=tokenizer, trainer=given,
        num_generations=2, max_length=None, max_completion_length=120, max_steps=1, logging_steps=1,
        **{"advantage_level": "turn", **own, **options},
    )  # fmt: skip
    made._generator = Script(tokenizer, say)
    return made


def turns_by_completion(trainer, trees):
    """Log-probs of each turn, [completion][turn][token]; old ones, 0.02 less each, are written into the trees."""
    found = {0: [], 1: []}
    for tree in trees:
        logps = trainer.score(trainer.model, trainer.build([tree]), log=False).logps
        left, old = iter(logps), [[] for _ in tree.completions]
        for index, number in enumerate(tree.sampled.of):
            for wrote, run in groupby(tree.mask(index)):
                own = [next(left) if wrote else torch.zeros(()) for _ in run]
                old[index] += [float(logp.detach()) - 0.02 for logp in own]
                found[number] += [own] if wrote else []
        tree.sampled.old_logps = old
    return found


@pytest.mark.parametrize("kind", ["gathered", "opened"])
@pytest.mark.parametrize("verb", ["rloo", "grpo"])
def test_each_turn_is_learned_by_what_was_still_to_come(verb, kind, tmp_path):
    trainer = build(tmp_path, verb, kind, environment_factory=Steps)
    groups = trainer.rollout([trainer.train_dataset[0]], 2, training=True)
    trainer.score_groups(groups, "train")
    trees = trainer.make_trees(groups, training=True)
    (group,) = groups
    assert group.rewards.tolist() == [3.0, 5.0] and group.turn_rewards == list(REWARDS.values())
    assert group.turn_advantages == TO_COME[verb]
    assert (len(trees) > 1) == (kind == "opened")
    turns = turns_by_completion(trainer, trees)
    terms = []
    for number, advantages in enumerate(TO_COME[verb]):
        for turn, advantage in zip(turns[number], advantages, strict=True):
            steps = [logp - logp.detach() + 0.02 for logp in turn]
            for ratio in [sum(steps).exp()] if verb == "rloo" else [step.exp() for step in steps]:
                terms.append(-torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage))
    trainer.model.zero_grad()
    (sum(terms) / (2 if verb == "rloo" else len(terms))).backward()
    expected = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
    trainer.prepare_step = lambda examples: examples
    assert largest_difference(step_gradients(trainer, trees), expected) < 1e-12


def test_tools_reward_the_turn_that_calls_and_rewards_of_models_come_as_notes(tmp_path):
    def steps(completions, log_extra, **columns):
        assert completions[0][1]["content"] == "42"
        log_extra("turn_rewards", [[0.25, 0.0] for _ in completions])
        return [1.0 for _ in completions]

    say = lambda text, place: "42" if "<r>42</r>" in text else CALL  # noqa: E731
    trainer = build(tmp_path, "rloo", say=say, tools=[add], reward_funcs=steps)
    trainer.train()
    row = json.loads((tmp_path / "samples.jsonl").read_text().splitlines()[0])
    assert row["turn_rewards"] == [0.75, 0.0] and row["reward"] == 1.75 and row["turn_advantages"] == [0.0, 0.0]
    log = trainer.state.log_history[0]
    assert log["reward"] == 1.75 and log["rewards/turns/mean"] == 0.75


def test_a_silent_first_turn_does_not_leave_out_a_group(tmp_path):
    trainer = build(tmp_path, "rloo", environment_factory=Steps)
    groups = trainer.rollout([trainer.train_dataset[0]], 2, training=True)
    trainer.score_groups(groups, "train")
    groups[0].shaped = torch.tensor([5.0, 5.0]).double()
    trees = trainer.make_trees(groups, training=True)
    assert groups[0].advantages.tolist() == [0.0, 0.0] and groups[0].turn_advantages[0] == [0.0, -1.0]
    assert trainer.rows_worth_computing(trees) == trees


@pytest.mark.parametrize(("first", "teaches"), [([1.0, 2.0], True), ([3.0, 0.0], True), ([0.0, 3.0], False)])
def test_equal_totals_of_unequal_turns_are_no_reason_to_sample_again(first, teaches, tmp_path):
    """[0, 3] against itself teaches nothing; against [1, 2] and [3, 0] the turns have something to learn."""

    class Pair(Steps):
        def step(self, text):
            self.said.append(text[0])
            rewards = {"a": first, "b": [0.0, 3.0]}[self.said[0]]
            return "on", rewards[len(self.said) - 1], len(self.said) == 2

    trainer = build(tmp_path, "grpo", environment_factory=Pair, dynamic_sampling=True, max_resampling_rounds=1)
    groups = trainer.rollout([trainer.train_dataset[0]], 2, training=True)
    trainer.score_groups(groups, "train")
    assert groups[0].rewards.tolist() == [3.0, 3.0] and trainer.has_spread(groups[0]) == teaches
    trainer.prepare_step([trainer.train_dataset[0]])
    kept = trainer._metrics["train"].drain()["dynamic_sampling/kept_ratio"]
    assert kept == float(teaches)


class Scaled(Steps):
    """Rewards of the row's own size, so that the rows of ranks differ."""

    def reset(self, size, **row):
        super().reset()
        self.size = size

    def step(self, text):
        observation, reward, done = super().step(text)
        return observation, reward * self.size, done


def one_step(folder, ranks):
    """The weights before and after a step of each method on two prompts, over one rank or two."""
    if ranks > 1:
        torch.distributed.init_process_group("gloo")
    found = {}
    for verb, options in {"grpo": {"scale_rewards": "batch"}, "rloo": {"normalize_advantages": True}}.items():
        trainer = build(
            Path(folder) / f"{verb}-{ranks}", verb, environment_factory=Scaled, **options, optim="sgd",
            rows=[{"prompt": [{"role": "user", "content": "go"}], "size": size} for size in (1.0, 3.0)],
            say=lambda text, place: "c" if "turn" in text else "ab"[place % 2], learning_rate=0.1,
            per_device_train_batch_size=4 // ranks, **({"ddp_backend": "gloo"} if ranks > 1 else {}),
        )  # fmt: skip
        found[verb] = [[weight.detach().clone() for weight in trainer.model.parameters()]]
        trainer.train()
        model = trainer.accelerator.unwrap_model(trainer.model)
        found[verb].append([weight.detach().clone() for weight in model.parameters()])
    return found


def test_two_ranks_credit_turns_as_one_does(tmp_path):
    alone, both = one_step(str(tmp_path), 1), run_ranks(one_step, 2, tmp_path / "ranks", str(tmp_path), 2)
    for verb, (start, end) in alone.items():
        assert not all(map(torch.equal, start, end))
        for rank in both:
            assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(end, rank[verb][1], strict=True)), verb


@pytest.mark.parametrize(
    "given", [[1.0], [1.0, float("nan")], [1.0, "a"], 2.0, "ab", [1.0, None], torch.ones(3), {0: 1.0, 1: 2.0}]
)
def test_turn_rewards_that_are_not_one_number_each_are_named(given):
    group = Group(Example([1], [], row=4), [[7, 8, 9]] * 2, [[0.0] * 3] * 2, ["stop"] * 2, [[1, 0, 1]] * 2)
    group.turn_rewards = [given, torch.tensor([1, 2])]
    sums, wrong = rewards_of_turns(group)
    assert sums.tolist() == [0.0, 3.0] and group.turn_rewards == [[0.0, 0.0], [1.0, 2.0]] and list(wrong) == [0]
    assert wrong[0].startswith("turn_rewards of completion 0 of row 4 are ") and "it has 2 turns" in wrong[0]


def wrong_numbers(prompts, trainer):
    """One number for a completion of two turns, in the first of each prompt's two."""
    ids, mask = [5, 6, 7, 8], [1, 0, 0, 1]
    return {
        "completion_ids": [ids] * len(prompts), "logprobs": [[-0.5] * 4] * len(prompts),
        "env_mask": [mask] * len(prompts),
        "turn_rewards": [[3.0] if place % 2 == 0 else [1.0, 4.0] for place in range(len(prompts))],
    }  # fmt: skip


@pytest.mark.parametrize("level", ["turn", "completion"])
@pytest.mark.parametrize("verb", ["grpo", "rloo"])
def test_a_wrong_number_of_turn_rewards_is_a_reward_that_failed(verb, level, tmp_path):
    """By `reward_on_error`: the run stops with its name, or that completion alone is left out or penalised."""
    given = {"reward_funcs": lambda completions, **columns: [1.0] * len(completions), "advantage_level": level}
    found = {}
    for on_error in ("skip", "penalize"):
        own = {"reward_penalty": -7.0} if on_error == "penalize" else {}
        trainer = build(tmp_path / on_error, verb, rollout_func=wrong_numbers, reward_on_error=on_error, **own, **given)
        groups = trainer.rollout([trainer.train_dataset[0]], 2, training=True)
        trainer.score_groups(groups, "train")
        trainer.make_trees(groups, training=True)
        (group,) = groups
        found[on_error] = (group.rewards.nan_to_num(99.0).tolist(), group.turn_rewards, group.advantages.tolist())
        metrics = trainer._metrics["train"].drain()
        assert metrics["rewards/turns/errors_fraction"] == 0.5
    assert found["skip"][:2] == ([99.0, 6.0], [[0.0, 0.0], [1.0, 4.0]]) and found["skip"][2] == [0.0, 0.0]
    assert found["penalize"][:2] == ([-6.0, 6.0], [[0.0, -7.0], [1.0, 4.0]])
    assert found["penalize"][2][0] < 0 < found["penalize"][2][1]
    trainer = build(tmp_path / "raise", verb, rollout_func=wrong_numbers, **given)
    groups = trainer.rollout([trainer.train_dataset[0]], 2, training=True)
    with pytest.raises(RewardError, match=r"(?s)on_error='skip'.*completion 0 of row 0 are a list: \[3.0\]; it has 2"):
        trainer.score_groups(groups, "train")


@pytest.mark.parametrize(
    ("config", "options", "reason"),
    [
        (PPOConfig, {}, "The critic gives each token"),
        (OnlineDPOConfig, {}, "GRPO and RLOO give credit by turn"),
        (GRPOConfig, {"loss_type": "luspo"}, "moves all turns"),
        (GRPOConfig, {"importance_sampling_level": "sequence"}, "moves all turns"),
        (GRPOConfig, {"multi_objective_aggregation": "normalize_then_sum"}, "sum_then_normalize"),
    ],
)
def test_where_turns_have_no_meaning_they_are_refused(config, options, reason, tmp_path):
    with pytest.raises(ConfigError, match=reason):
        config(output_dir=str(tmp_path), advantage_level="turn", **options)


def test_completions_of_one_turn_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="needs completions of several turns"):
        make_trainer("grpo", tmp_path, advantage_level="turn")
