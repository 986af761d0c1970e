"""A step that learns from its first prompts while the others are still made: the gradient of the whole step."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from tests.online.test_ahead import PATIENCE, Unweighed, ahead, same, weights

from strop.errors import ConfigError
from strop.rollout import SamplingParams
from strop.rollout.native import NativeGenerator
from strop.testing.cases import largest_difference, letters_reward, make_trainer, settings
from strop.testing.tiny import tiny_model


class Sharing(Unweighed):
    """The same completions in strict order too."""

    def sync(self, model: Any = None) -> None:
        pass


def gradients(folder: Any, stream: int | None, **options: Any) -> tuple[dict[str, torch.Tensor], float, Any]:
    """Of one step on six prompts: gradients, the loss, and the trainer."""
    defaults = {"prompts": 6, "max_staleness": 0, "per_device_train_batch_size": 12, "max_tokens_per_micro_batch": 40}
    trainer = ahead(folder, Sharing, **defaults | options, stream_prompts=stream)
    trainer.state.logging_steps = 1
    trainer.model.zero_grad()
    loss = trainer.training_step(trainer.model, [trainer.train_dataset[i] for i in range(6)])
    return {name: p.grad.clone() for name, p in trainer.model.named_parameters()}, float(loss), trainer


@pytest.mark.parametrize(
    "options",
    [
        *({"loss_type": name} for name in ("dapo", "grpo", "dr_grpo", "luspo")),
        {"verb": "rloo"}, {"verb": "rloo", "reward_clip_range": [0.2, 0.6], "beta": 0.0},
    ],
    ids=str,
)  # fmt: skip
def test_the_gradient_is_that_of_the_whole_step(options, tmp_path):
    whole, loss, strict = gradients(tmp_path / "whole", None, **options)
    for size in (1, 4):
        parts, added, trainer = gradients(tmp_path / str(size), size, **options)
        assert largest_difference(whole, parts) < 1e-12 and added == pytest.approx(loss, abs=1e-6)
        assert trainer.step_work.counts == pytest.approx(strict.step_work.counts)
        assert [e.row for e in trainer.step_work.examples] == [e.row for e in strict.step_work.examples]
        assert trainer.rounds == strict.rounds == 1


def test_groups_without_an_advantage_count_and_cost_nothing(tmp_path):
    def alike(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        values = letters_reward(completions)
        return [0.0 if len(prompt) % 2 else value for prompt, value in zip(prompts, values, strict=True)]

    whole, *_ = gradients(tmp_path / "whole", None, reward=alike, beta=0.0)
    parts, _, trainer = gradients(tmp_path / "parts", 1, reward=alike, beta=0.0)
    assert 0 < len(trainer.step_work.examples) < 6 and largest_difference(whole, parts) < 1e-12
    none, loss, _ = gradients(tmp_path / "none", 1, reward=lambda completions, **_: [0.0] * len(completions), beta=0.0)
    assert loss == 0.0 and not any(bool(g.any()) for g in none.values())


@pytest.mark.parametrize("slow", ["rewards", "sampling"])
def test_the_first_prompts_are_learned_from_while_the_last_are_made(slow, tmp_path):
    """What is slow for the second part ends only after the gradient of the first: in strict order, never."""
    learned, calls = threading.Event(), []

    def until_learned(kind: str) -> None:
        if kind == slow:
            calls.append(threading.current_thread().name)
            assert len(calls) != 2 or learned.wait(PATIENCE), "nothing was learned meanwhile"

    def reward(completions: list[str], **kwargs: Any) -> list[float]:
        until_learned("rewards")
        return letters_reward(completions)

    class Engine(Sharing):
        def generate(self, *args: Any, **kwargs: Any) -> Any:
            until_learned("sampling")
            return super().generate(*args, **kwargs)

    trainer = ahead(tmp_path, Engine, reward, max_staleness=0, stream_prompts=1, max_steps=1, reward_timeout=None)
    backward = trainer.backward
    trainer.backward = lambda loss: (backward(loss), learned.set())
    trainer.train()
    assert calls == [f"strop-{slow}"] * 2


@pytest.mark.parametrize("verb", ["grpo", "rloo"])
def test_a_run_in_parts_is_the_run_of_whole_steps(verb, tmp_path):
    ends = []
    for stream in (None, 1):
        options = {"verb": verb, "max_staleness": 0, "stream_prompts": stream, "optim": "sgd"}
        trainer = ahead(tmp_path / str(stream), Sharing, **options)
        trainer.train()
        names = ("loss", "grad_norm", "reward", "num_tokens", "completions/mean_length", "sampling/kl")
        lines = [[line[name] for name in names] for line in trainer.state.log_history if "loss" in line]
        ends.append((weights(trainer), lines))
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(ends[0][0], ends[1][0], strict=True))
    assert ends[0][1] == [pytest.approx(line, rel=1e-5) for line in ends[1][1]]
    assert not same(ends[0][0], weights(ahead(tmp_path / "still", Sharing, max_staleness=0)))


def test_a_part_of_a_call_draws_what_the_whole_call_draws():
    engine = NativeGenerator(tiny_model("llama"))
    prompts, params = [[5, 6], [7], [8, 9, 10]], {"max_new_tokens": 5, "seed": 3, "stop_token_ids": ()}
    whole = engine.generate(prompts, 2, SamplingParams(**params)).completions
    assert engine.generate(prompts[1:], 2, SamplingParams(**params, first_prompt=1)).completions == whole[1:]


@pytest.mark.parametrize(
    "options",
    [
        {"scale_rewards": "batch"}, {"top_entropy_quantile": 0.5}, {"use_adaptive_entropy": True},
        {"multi_objective_aggregation": "normalize_then_sum"}, {"entropy_coef": 0.1}, {"num_iterations": 2},
        {"steps_per_generation": 2}, {"max_staleness": 1}, {"dynamic_sampling": True},
    ],
    ids=str,
)  # fmt: skip
def test_what_looks_at_the_whole_step_is_refused_by_name(options, tmp_path):
    (name,) = options
    with pytest.raises(ConfigError, match=f"stream_prompts=2: {name}.* needs all completions of a step at once"):
        settings("grpo", tmp_path, stream_prompts=2, **options)


def test_rloo_refuses_statistics_of_the_whole_step(tmp_path):
    with pytest.raises(ConfigError, match="stream_prompts=2: normalize_advantages needs all completions of a step"):
        settings("rloo", tmp_path, stream_prompts=2, normalize_advantages=True)


def test_a_router_that_is_balanced_over_the_step_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"(?s)stream_prompts=2 cannot be used here.*router"):
        make_trainer("grpo", tmp_path, arch="qwen3_moe", stream_prompts=2, router_aux_loss_coef=0.1)
