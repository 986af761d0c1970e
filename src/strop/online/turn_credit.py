"""Credit by turn: which tokens are which turn of the model, and what the turns of a completion were rewarded with."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby
from typing import Any

import torch

from strop.device import sent
from strop.engine.step import token_field
from strop.online.groups import Group
from strop.online.pieces import trajectory_of
from strop.records import Batch, Sampled
from strop.rewards.contract import describe, read_number

NOTE = "turn_rewards"
"""What a reward function calls its rewards of single turns: `log_extra("turn_rewards", lists)`."""


def turn_lengths(group: Group, index: int) -> list[int]:
    """Tokens of each turn of the model in a completion; without a record of them, runs of tokens that it wrote."""
    if group.replies is not None and group.turn_tokens is not None:
        turns = zip(group.replies[index], group.turn_tokens[index], strict=True)
        return [tokens for message, tokens in turns if message["role"] == "assistant"]
    mask = [1] * len(group.completions[index]) if group.loss_mask is None else group.loss_mask[index]
    return [len(list(run)) for wrote, run in groupby(mask) if wrote]


def rewards_of_turns(group: Group) -> tuple[torch.Tensor | None, dict[int, str]]:
    """Write into a group what its environment or tools, and a reward function's notes, say of each turn; their sums,
    (G,) float64, None where nothing is said. And what is wrong with those of a completion that are not one finite
    number for each turn: its turns have 0.
    """
    said = [values for values in (group.turn_rewards, group.notes.get(NOTE)) if values is not None]
    if not said:
        return None, {}
    added = [_added(group, index, [values[index] for values in said]) for index in range(len(said[0]))]
    group.turn_rewards = [total for total, _ in added]
    sums = torch.tensor([sum(rewards) for rewards in group.turn_rewards], dtype=torch.float64)
    return sums, {index: problem for index, (_, problem) in enumerate(added) if problem}


def unrewarded(group: Group) -> list[list[float]]:
    """Nothing for each turn of a group's completions."""
    return [[0.0] * len(turn_lengths(group, index)) for index in range(len(group.completions))]


def _added(group: Group, index: int, said: list[Any]) -> tuple[list[float], str]:
    nothing = [0.0] * (turns := len(turn_lengths(group, index)))
    total = nothing
    for values in said:
        if values is None or group.finish_reasons[index] == "failed":
            continue
        values = values.tolist() if hasattr(values, "tolist") else values
        numbers = [read_number(value)[0] for value in values] if isinstance(values, list | tuple) else [None]
        if len(numbers) != turns or None in numbers:
            return nothing, (
                f"turn_rewards of completion {index} of row {group.example.row} are {describe(values)}; it has {turns} "
                "turns of the model: give one finite number for each."
            )
        total = [before + number for before, number in zip(total, numbers, strict=True)]  # type: ignore[operator]
    return total, ""


def with_turns(known: Sampled, group: Group) -> Sampled:
    """What is known about a group's completions, with the turn and the advantage of each of their tokens."""
    if group.turn_advantages is None:
        return known
    numbers, advantages = [], []
    for index, own in enumerate(group.turn_advantages):
        left = iter([number for number, length in enumerate(turn_lengths(group, index)) for _ in range(length)])
        mask = [1] * len(group.completions[index]) if group.loss_mask is None else group.loss_mask[index]
        numbers.append([next(left) if on else -1 for on in mask])
        advantages.append([own[number] if number >= 0 else 0.0 for number in numbers[-1]])
    return replace(known, token_turns=numbers, token_advantages=advantages)


def turns_of(batch: Batch) -> tuple[torch.Tensor, int]:
    """Number of the turn of each scored token (N,), counted over all trajectories, and how many turns there are."""
    trajectory, _ = trajectory_of(batch, "cpu")
    turn = token_field(batch, "token_turns", "cpu").long()
    pairs = torch.stack((trajectory, turn), 1).unique(dim=0, return_inverse=True)
    return sent(pairs[1], batch.segment.device), len(pairs[0])
