"""GRPO with tools and environments on the real engine: answers are masked, rewards see the environments."""

from __future__ import annotations

import pytest
import torch

from strop.errors import RolloutError
from strop.records import Rollout
from strop.testing.cases import make_trainer
from strop.testing.tiny import tiny_model
from strop.testing.tokenizers import toy_tokenizer


class Countdown:
    """Answers twice, then ends; the reward is the number of turns."""

    def __init__(self):
        self.reward = 0.0

    def reset(self, start=0, **row):
        return f"start {start}"

    def step(self, text):
        self.reward += 1
        return f"turn {self.reward:.0f}", self.reward == 3


def build(tmp_path, **trainer):
    tokenizer = toy_tokenizer("chatml")
    rows = [{"prompt": [{"role": "user", "content": f"go {i}"}], "start": i} for i in range(2)]
    model = tiny_model("llama", dtype=torch.float64, vocab_size=len(tokenizer))
    return make_trainer(
        "grpo", tmp_path, rows=rows, model=model, tokenizer=tokenizer, trainer=trainer, num_generations=2,
        max_completion_length=200, loss_type="grpo",
    )  # fmt: skip


def test_an_environment_gives_turns_masks_and_a_reward(tmp_path):
    trainer = build(tmp_path, reward_funcs=None, environment_factory=Countdown)
    groups = trainer.rollout([trainer.train_dataset[0]], 2, training=True)
    trainer.score_groups(groups, "train")
    group = groups[0]
    assert group.rewards.tolist() == [float(e.reward) for e in group.environments]
    for ids, mask, logps in zip(group.completions, group.loss_mask, group.sampler_logps, strict=True):
        assert len(ids) == len(mask) == len(logps) and 0 in mask
        answers = trainer.processing_class.decode([i for i, m in zip(ids, mask, strict=True) if not m])
        assert "start 0" in answers
    group.advantages = torch.ones(2)
    batch = trainer.build([trainer.tree(group)])
    scores = trainer.score(trainer.model, batch, log=False)
    pairs = [zip(*both, strict=True) for both in zip(group.sampler_logps, group.loss_mask, strict=True)]
    wrote = [logp for pair in pairs for logp, mask in pair if mask]
    assert torch.allclose(scores.logps.detach(), torch.tensor(wrote).double(), atol=1e-6)


def test_tool_calls_are_counted_where_they_happen(tmp_path):
    def add(a: int, b: int) -> int:
        """Add two numbers.

        Args:
            a: the first
            b: the second
        """
        return a + b

    trainer = build(tmp_path, tools=[add])
    for training, mode, other in ((False, "eval", "train"), (True, "train", "eval")):
        trainer.rollout([trainer.train_dataset[0]], 2, training=training)
        assert trainer._metrics[mode].drain()["tools/call_frequency"] == 0.0
        assert not trainer._metrics[other].state()


def test_a_rollout_function_replaces_the_engine(tmp_path):
    def rollout_func(prompts, n, sampling, trainer):
        return Rollout(
            prompts,
            [[[5, 6]] * n for _ in prompts],
            [[[-1.0, -1.0]] * n for _ in prompts],
            [["stop"] * n for _ in prompts],
        )

    trainer = build(tmp_path, rollout_func=rollout_func)
    assert trainer.rollout([trainer.train_dataset[0]], 2, training=True)[0].completions == [[5, 6], [5, 6]]
    trainer._rollout_func = lambda *a: {"completion_ids": [[[5]]], "logprobs": [[[-1.0]]]}
    with pytest.raises(RolloutError, match="completions per prompt"):
        trainer.rollout([trainer.train_dataset[0]], 2, training=True)
