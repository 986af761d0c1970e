"""Rollouts and rewards in Ray actors: what one engine here gives, the weights of every sync, and a death by name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from strop.errors import ConfigError, DataError, RewardError, RolloutError, SetupError
from strop.ray_cluster import answers
from strop.records import Rollout
from strop.rewards import RayReward, RewardSet
from strop.rollout import SamplingParams
from strop.rollout.generator import Mixture
from strop.rollout.native import NativeGenerator
from strop.rollout.ray_workers import RayGenerator
from strop.testing.cases import make_trainer
from strop.testing.tiny import tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]
SAMPLING = SamplingParams(max_new_tokens=6, seed=3, stop_token_ids=())
PROMPTS = [[5, 6, 7], [8], [8]]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[Any]:
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        root = Path(__file__).resolve().parents[2]
        patch.setenv("PYTHONPATH", os.pathsep.join([str(root / "src"), str(root), os.environ.get("PYTHONPATH", "")]))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
        yield ray
        ray.shutdown()


def check_same(found: Rollout, right: Rollout) -> None:
    """The same completions; batches of other sizes round differently."""
    assert found.prompts == right.prompts
    assert (found.completions, found.finish_reasons) == (right.completions, right.finish_reasons)
    gaps = [torch.tensor(a) - torch.tensor(b) for a, b in zip(found.sampler_logps, right.sampler_logps, strict=True)]
    assert max(float(gap.abs().max()) for gap in gaps) < 1e-4


def test_actors_draw_what_one_engine_here_draws_from_the_weights_of_the_sync() -> None:
    policy = tiny_model("llama", dtype=torch.float32)
    engine, here = RayGenerator(policy, workers=2, engine="native", seconds=120.0), NativeGenerator(policy)
    check_same(engine.generate(PROMPTS, 2, SAMPLING), here.generate(PROMPTS, 2, SAMPLING))
    assert engine.reason == "it was asked for, in 2 Ray actors: its logits agree with the model's own forward pass"
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    assert engine.generate(PROMPTS, 2, SAMPLING).completions != here.generate(PROMPTS, 2, SAMPLING).completions
    load = engine.stage(policy)
    staged = here.generate(PROMPTS, 2, SAMPLING)
    with torch.no_grad():
        next(policy.parameters()).zero_()
    load()
    check_same(engine.generate(PROMPTS, 2, SAMPLING), staged)
    assert len(engine.generate(PROMPTS[:1], 2, SAMPLING).completions) == 1  # fewer prompts than actors
    with pytest.raises(DataError, match="prompt 2 has no tokens"):
        engine.generate([[5], [6], []], 1, SAMPLING)
    with pytest.raises(SetupError, match="no second model"):
        engine.generate(PROMPTS, 1, SAMPLING, mixture=Mixture(policy, 0.5))

    os.kill(answers([engine.actors[1].process_id.remote()], 60.0)[0], 9)
    with pytest.raises(RolloutError, match=r"A Ray actor of 2 that sample: it died"):
        engine.generate(PROMPTS, 2, SAMPLING)
    engine.close()


def test_an_actor_without_room_is_waited_for_and_named() -> None:
    engine = RayGenerator(tiny_model("llama"), workers=3, seconds=3.0)
    with pytest.raises(RolloutError, match=r"no answer within 3 seconds \(free in the cluster: .*CPU"):
        engine.sync()
    assert engine.actors == []


def scored(function: Any, **options: Any) -> list[Any]:
    reward = RayReward(function, **options)
    texts = ["a", "bb", "ccc"]
    try:
        table = RewardSet([reward], timeout_seconds=60.0).score(
            ["p"] * 3, texts, [[1]] * 3, {"scale": [1.0, 10.0, 100.0]}
        )
    finally:
        reward.close()
    assert table.names == [getattr(function, "__name__", "")]
    return table.values[0].tolist()


def test_rewards_of_actors() -> None:
    def length(completions: list[str], scale: list[float], bonus: float = 1.0) -> list[float]:
        return [bonus * len(text) * factor for text, factor in zip(completions, scale, strict=True)]

    async def waits(completions: list[str], **kwargs: Any) -> list[float]:
        assert "log_metric" not in kwargs
        return [float(len(text)) for text in completions]

    def fatal(completions: list[str]) -> list[float]:
        os._exit(3)

    def short(completions: list[str]) -> list[float]:
        return [1.0] * (len(completions) - 1 if "a" in completions else len(completions) + 1)

    assert scored(length, workers=2) == [1.0, 20.0, 300.0]
    assert scored(waits, workers=1) == [1.0, 2.0, 3.0]
    with pytest.raises(RewardError, match="of its 1 Ray actors one gave no score: it died"):
        scored(fatal, workers=1)
    with pytest.raises(RewardError, match="values for"):  # not one too few here and one too many there
        scored(short, workers=2)
    with pytest.raises(ConfigError, match="asks for log_metric"):
        RayReward(lambda completions, log_metric: [])


def test_grpo_with_rollouts_and_rewards_in_actors(tmp_path: Path) -> None:
    def letters(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
        return [float(sum(ids)) for ids in completion_ids]

    reward = RayReward(letters, workers=1, num_cpus=0)
    losses = []
    for name, engine, judge in (("here", "native", letters), ("ray", "ray", reward)):
        trainer = make_trainer(
            "grpo", tmp_path / name, trainer={"reward_funcs": judge}, engine=engine, max_steps=2, logging_steps=1
        )
        trainer.train()
        losses.append([(line["loss"], line["reward"]) for line in trainer.state.log_history if "loss" in line])
        trainer.generator.close()
    assert losses[0] == losses[1]
