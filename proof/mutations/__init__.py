"""Bugs that libraries had, by the room of strop that they are put into. Adding one is one entry in one of these files."""

from __future__ import annotations

from proof.mutation import Mutation
from proof.mutations import (
    agents,
    ahead,
    architectures,
    card_rollouts,
    card_steps,
    counts,
    data,
    files,
    folders,
    head,
    kernels,
    losses,
    model,
    package,
    recovery,
    rewards,
    rollout,
    runs,
    scripts,
    shards,
)

MUTATIONS: tuple[Mutation, ...] = (
    *losses.MUTATIONS,
    *data.MUTATIONS,
    *files.MUTATIONS,
    *folders.MUTATIONS,
    *model.MUTATIONS,
    *head.MUTATIONS,
    *kernels.MUTATIONS,
    *architectures.MUTATIONS,
    *rollout.MUTATIONS,
    *ahead.MUTATIONS,
    *agents.MUTATIONS,
    *card_rollouts.MUTATIONS,
    *rewards.MUTATIONS,
    *runs.MUTATIONS,
    *counts.MUTATIONS,
    *scripts.MUTATIONS,
    *card_steps.MUTATIONS,
    *recovery.MUTATIONS,
    *shards.MUTATIONS,
    *package.MUTATIONS,
)
