"""Processes that share the weights of a model: each pass is a meeting of all, and they do not sample equally often."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from tests.support.processes import run_ranks
from torch.nn.modules.module import register_module_forward_pre_hook

from strop.methods import policy_gradient
from strop.rollout import SamplingParams, limits
from strop.rollout.transformers_engine import TransformersGenerator
from strop.testing.cases import make_trainer, rows_for
from strop.testing.tiny import tiny_model

PATIENCE = timedelta(seconds=20)
PROMPTS = [[1, 2, 3], [4, 5], [6, 7, 8, 9]]
PARAMS = SamplingParams(5, seed=3, stop_token_ids=(7, 11))


def meet(module: torch.nn.Module, inputs: Any) -> None:
    """Before the layers of a shared model run: until every rank is here."""
    if getattr(module, "shared", False):
        torch.distributed.monitored_barrier(timeout=PATIENCE)


def sampled(rank: int = 0) -> list[list[list[int]]]:
    """All prompts, one at a time, by the first rank; one of them by the second, twice; none by the third."""
    model = tiny_model("llama", dtype=torch.float32, seed=0)
    model.model.shared = True
    generator, written = TransformersGenerator(model, max_rows=1), []
    for prompts in [[PROMPTS], [PROMPTS[1:2], PROMPTS[1:2]], []][rank]:
        written += generator.generate(prompts, 1, PARAMS).completions
    generator.help_others()
    return written


def sample_together() -> list[list[list[int]]]:
    torch.distributed.init_process_group("gloo")
    limits.is_sharded = lambda model: True  # type: ignore[assignment]
    hook = register_module_forward_pre_hook(meet)
    try:
        return sampled(torch.distributed.get_rank())
    finally:
        hook.remove()


def test_a_process_that_samples_less_helps_those_that_share_its_model(tmp_path: Path) -> None:
    first, second, third = run_ranks(sample_together, 3, tmp_path / "ranks")
    assert first == sampled(0) and second == sampled(1) and third == []


def train_short_windows(folder: str) -> list[int]:
    """Runs whose second step, and whose evaluation, has no row for the second of two ranks."""
    torch.distributed.init_process_group("gloo")
    limits.is_sharded = lambda model: True  # type: ignore[assignment]
    hook = register_module_forward_pre_hook(meet)
    steps = []
    try:
        for verb in ("grpo", "nash-md"):
            group = {"num_generations": 2, "num_generations_eval": 2} if verb == "grpo" else {}
            trainer = make_trainer(
                verb, Path(folder) / verb, dtype=torch.float32, rows=rows_for(verb, 3 if group else 5),
                eval_rows=rows_for(verb, 1, seed=1), per_device_train_batch_size=2, per_device_eval_batch_size=2,
                num_train_epochs=1, eval_strategy="epoch", ddp_backend="gloo", **group,
            )  # fmt: skip
            trainer.policy.model.shared = True
            trainer.train()
            assert trainer.generator.name == "transformers"
            steps.append(trainer.state.global_step)
    finally:
        hook.remove()
    return steps


def one_rank_lacks(completions: list[str], **kwargs: Any) -> list[float]:
    """Rewards that differ on the first rank, and are alike on the second."""
    return [float(i % 2) if os.environ["RANK"] == "0" else 1.0 for i in range(len(completions))]


def train_with_further_groups(folder: str) -> list[float]:
    """The share of groups that was kept in each step of a run whose second rank draws further ones."""
    torch.distributed.init_process_group("gloo")
    limits.is_sharded = lambda model: True  # type: ignore[assignment]
    policy_gradient.is_sharded = lambda accelerator: True
    hook = register_module_forward_pre_hook(meet)
    try:
        trainer = make_trainer(
            "grpo", folder, dtype=torch.float32, rows=rows_for("grpo", 8), max_steps=2, logging_steps=1,
            per_device_train_batch_size=2, num_generations=2, dynamic_sampling=True, max_resampling_rounds=2,
            ddp_backend="gloo", trainer={"reward_funcs": one_rank_lacks},
        )  # fmt: skip
        trainer.policy.model.shared = True
        trainer.train()
    finally:
        hook.remove()
    return [line["dynamic_sampling/kept_ratio"] for line in trainer.state.log_history if "loss" in line]


def test_ranks_that_share_a_model_draw_further_groups_equally_often(tmp_path: Path) -> None:
    kept = run_ranks(train_with_further_groups, 2, tmp_path / "ranks", str(tmp_path), seconds=100)
    assert kept == [[0.25] * 2] * 2  # of four groups in all, one on the first rank


def test_a_rank_without_a_prompt_helps_the_others_to_sample(tmp_path: Path) -> None:
    assert run_ranks(train_short_windows, 2, tmp_path / "ranks", str(tmp_path)) == [[2, 2]] * 2
