"""How many prompts, completions and optimizer steps make a round of sampling, and which tree goes to which step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from strop.online.pieces import in_trajectories
from strop.records import Example


@dataclass(frozen=True, slots=True)
class BatchSizes:
    """The sizes of a round of sampling; all count over all ranks."""

    group: int  # completions per prompt
    completions: int  # that one optimizer step asks for
    prompts: int  # whole groups that make an optimizer step
    fresh_steps: int  # optimizer steps with new completions that one round serves
    uses: int  # times that each round is learned from

    @property
    def steps(self) -> int:
        """Optimizer steps from one round of sampling to the next."""
        return self.fresh_steps * self.uses

    @property
    def prompts_of_a_round(self) -> int:
        return self.prompts * self.fresh_steps


def batch_sizes(args: Any, rows_per_step: int, group: int, counts: Literal["completions", "prompts"]) -> BatchSizes:
    """Sizes that follow from the batch settings; groups are whole, so completions are rounded up to them.

    `rows_per_step` is per device x accumulation x ranks, and `counts` says what those are: completions, or prompts for
    methods that make pairs.
    """
    completions = rows_per_step * (group if counts == "prompts" else 1)
    prompts = rows_per_step if counts == "prompts" else math.ceil(completions / group)
    if args.generation_batch_size is not None:
        fresh = round(args.generation_batch_size / completions)
    else:
        accumulation = args.gradient_accumulation_steps
        fresh = round((args.steps_per_generation or accumulation) / accumulation)
    return BatchSizes(group, completions, prompts, max(1, fresh), args.num_iterations)


def rounding_notices(args: Any, sizes: BatchSizes) -> list[str]:
    """What to say where the batch settings do not divide, and what is done instead."""
    notices = []
    if sizes.completions % sizes.group:
        notices.append(
            f"{sizes.completions} completions per step make no whole groups of {sizes.group}; prompts used for each "
            f"step: {sizes.prompts}, with {sizes.prompts * sizes.group} completions. Micro-batches stay at "
            "per_device_train_batch_size."
        )
    accumulation, asked = args.gradient_accumulation_steps, None
    if args.generation_batch_size is not None and args.generation_batch_size != sizes.completions * sizes.fresh_steps:
        asked = f"generation_batch_size={args.generation_batch_size}"
    elif args.steps_per_generation is not None and args.steps_per_generation != accumulation * sizes.fresh_steps:
        asked = f"steps_per_generation={args.steps_per_generation}, at gradient_accumulation_steps={accumulation},"
    if asked is not None:
        notices.append(
            f"{asked} is no whole number of optimizer steps of {sizes.completions} completions; each round of sampling "
            f"serves {sizes.fresh_steps}, with {sizes.prompts_of_a_round * sizes.group} completions."
        )
    return notices


def split_steps(
    trees: Sequence[Example], sizes: BatchSizes, *, rank: int = 0, world_size: int = 1
) -> list[list[Example]]:
    """The trees of a round by the optimizer step that uses them; a step's prompts do not depend on the ranks.

    A tree belongs to the prompt `sampled.place` of this rank's share; given trees to that of their own position.
    """
    steps: list[list[Example]] = [[] for _ in range(sizes.fresh_steps)]
    for index, tree in enumerate(trees):
        position = (index if tree.sampled is None else tree.sampled.place) * world_size + rank
        steps[min(position // sizes.prompts, sizes.fresh_steps - 1)].append(tree)
    return steps


def share_steps(shares: Sequence[list[list[Any]]], *, rank: int, world_size: int) -> list[list[Any]]:
    """What every rank of a stopped run still had to learn from, step by step, dealt out to the ranks of another."""
    steps = [[Example.from_plain(tree) for share in step for tree in share] for step in zip(*shares, strict=True)]
    return [[tree.to_plain() for unit in in_trajectories(step)[rank::world_size] for tree in unit] for step in steps]
