"""Who meets whom: completions of an opponent beside the policy's, and pairs of completions before a judge."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

import torch

from strop.errors import ConfigError
from strop.online.groups import Group
from strop.online.sampling import Drawn, of_opponent
from strop.records import Example
from strop.rollout import Mixture, SamplingParams

if TYPE_CHECKING:
    from strop.online.trainer import OnlineTrainer

OPPONENT_UNUSED = {
    **dict.fromkeys(
        (
            "use_vllm",
            "vllm_mode",
            "vllm_server_base_url",
            "vllm_server_host",
            "vllm_server_port",
            "vllm_server_timeout",
            "vllm_sync_dir",
            "vllm_gpu_memory_utilization",
            "vllm_max_model_length",
            "vllm_model_impl",
        ),
        "The opponent is sampled from two models at once, which vLLM cannot do; remove it.",
    ),
    **dict.fromkeys(("ray_workers", "ray_timeout"), "The opponent is sampled from two models here; remove it."),
    **dict.fromkeys(
        ("max_tool_calling_iterations", "tool_timeout", "tools_at_once", "environment_isolation", "past_turns"),
        "The opponent has no tools and no environment; use OnlineDPOTrainer.",
    ),
}
"""Settings that have no effect where the policy meets an opponent."""


def drawing_against(
    trainer: OnlineTrainer,
    own: Callable[[], Drawn],
    prompts: Sequence[Example],
    params: SamplingParams,
    weight: float,
) -> Callable[[], Drawn]:
    """What samples groups of two: the completion of the policy that `own` draws, then one of the mixture in which the
    reference has `weight`."""
    engine, other = trainer.generator, of_opponent(params)
    with trainer.reference.active() as reference:
        mixture = Mixture(reference, weight, context=trainer.reference.active)

    def draw() -> Drawn:
        groups, counted = own()
        if groups:
            met = engine.generate([prompt.prompt_ids for prompt in prompts], 1, other, mixture=mixture)
            lists = zip(groups, met.completions, met.sampler_logps, met.finish_reasons, strict=True)
            for group, completions, sampler_logps, reasons in lists:
                group.completions = [group.completions[0], completions[0]]
                group.sampler_logps = [group.sampler_logps[0], sampler_logps[0]]
                group.finish_reasons = [group.finish_reasons[0], reasons[0]]
                group.own = 1
        return groups, counted

    return draw


def of_policy(group: Group) -> Group:
    """A group with the policy's own completions alone, of those that were sampled."""
    some = slice(group.own)
    return replace(
        group,
        completions=group.completions[some],
        sampler_logps=group.sampler_logps[some],
        finish_reasons=group.finish_reasons[some],
    )


class PairVerdicts:
    """A judge as a reward of pairs: P(the first completion wins) for each, None where there is no verdict."""

    runs_models = True

    def __init__(self, judge: Any) -> None:
        self.judge = judge
        self.reward_name = getattr(judge, "name", None) or type(judge).__name__

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **kwargs: Any) -> list[float | None]:
        return self.judge.probabilities(prompts, completions)


def check_opponent(trainer: OnlineTrainer) -> None:
    """Refuse what cannot sample token by token from two models."""
    name, problems = type(trainer).__name__.removeprefix("Online"), []
    if trainer.args.engine in ("vllm", "ray"):
        problems.append(
            f"engine={trainer.args.engine!r}: {name} samples its opponent from two models at once; take 'auto'."
        )
    if trainer.shards is not None and not hasattr(trainer.reference, "model"):
        problems.append(
            f"FSDP: {name} samples its opponent from the policy without its adapter, whose weights are cut; train all "
            "weights, or use ZeRO-2."
        )
    if trainer.turns_wanted:
        problems.append(
            f"tools, environments and rollout functions: the opponent of {name} has none; use OnlineDPOTrainer."
        )
    if problems:
        raise ConfigError.collect(f"{name} cannot be made from these arguments:", problems)


def check_judge(args: Any) -> None:
    """Refuse settings that make numbers of what a judge says; a verdict is none."""
    advice = {
        "missing_eos_penalty": "A judge sees the text; let it judge the missing end, or give rewards instead.",
        "reward_weights": "One judge decides alone; remove it.",
    }
    problems = [f"{name}: {text}" for name, text in advice.items() if getattr(args, name)]
    if args.reward_on_error == "penalize":
        problems.append(
            "reward_on_error='penalize': a failed verdict is no loss of either side; use 'skip' or 'raise'."
        )
    if problems:
        raise ConfigError.collect("These settings do not go with a judge:", problems)


def judged(group: Group, verdicts: Sequence[float]) -> None:
    """Write the share of its duels that each completion won as its reward; NaN where it had no verdict.

    `verdicts` are P(i beats j), NaN without a verdict, of all pairs i < j in the order of `combinations`. Of two
    completions the first one's reward is P and the second one's 1 - P.
    """
    won: list[list[float]] = [[] for _ in group.completions]
    for (i, j), probability in zip(combinations(range(len(won)), 2), verdicts, strict=True):
        if not math.isnan(probability):
            won[i].append(probability)
            won[j].append(1 - probability)
    shares = [sum(part) / len(part) if part else math.nan for part in won]
    group.rewards = torch.tensor(shares, dtype=torch.float64)
    group.values = group.rewards[:, None]


def preferences(groups: Sequence[Group], *, judge: bool) -> list[float | None]:
    """P(first completion > second) of each group of two; None where there is no verdict.

    A judge's own probability, or sigmoid(R1 - R2) of rewards.
    """
    result: list[float | None] = []
    for group in groups:
        assert group.rewards is not None
        first, second = (float(value) for value in group.rewards)
        if math.isnan(first) or math.isnan(second):
            result.append(None)
        else:
            result.append(first if judge else 1 / (1 + math.exp(-max(-700.0, min(700.0, first - second)))))
    return result
