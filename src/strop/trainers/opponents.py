"""Completions of an opponent beside those of the policy, and which of the two is preferred."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from strop.records import Example
from strop.rollout import Mixture
from strop.trainers.groups import Group


def rollout_against(
    trainer: Any, sample: Callable[..., list[Group]], prompts: Sequence[Example], training: bool, mixture: Mixture
) -> list[Group]:
    """Groups of two: one completion of the policy, then one of the mixture of policy and reference."""
    groups = sample(prompts, 1, training)
    if not groups:
        return groups
    sampling = trainer.sampling(training, player=1)
    other = trainer.generator.generate([p.prompt_ids for p in prompts], 1, sampling, mixture=mixture)
    for index, group in enumerate(groups):
        group.completions = [group.completions[0], other.completions[index][0]]
        group.sampler_logps = [group.sampler_logps[0], other.sampler_logps[index][0]]
        group.finish_reasons = [group.finish_reasons[0], other.finish_reasons[index][0]]
    return groups


def preferences(trainer: Any, groups: Sequence[Group]) -> list[float | None]:
    """P(first completion > second) of each group, sigmoid(R1 - R2); None where there is no verdict.

    A judge's probabilities arrive as rewards whose difference is their logit, so one formula serves both.
    """
    result: list[float | None] = []
    for group in groups:
        assert group.rewards is not None
        first, second = (float(value) for value in group.rewards)
        result.append(None if math.isnan(first) or math.isnan(second) else 1 / (1 + math.exp(-max(-700.0, min(700.0, first - second)))))
    return result
