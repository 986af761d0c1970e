"""One optimizer step: its rows, their denominators over all ranks, its micro-batches, its whole-step statistics.

The reduction law lives here and in `losses/reduce.py`: everything that a loss divides by, and every statistic that
ties rows to each other, is known for the whole step and all ranks before the first backward. So the gradient
depends on the set of rows only, not on how they are cut into micro-batches or shared out over processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from strop.records import Batch, Example, Scores

Counts = dict[str, float]


@dataclass
class StepWork:
    """The rows that one rank brings to one optimizer step, and what is known about the whole step."""

    examples: list[Example]
    counts: Counts = field(default_factory=dict)  # over all ranks
    stand_in: bool = False  # this rank had no row: one example is computed with weight zero
    log: bool = True  # metrics that cost extra are wanted
    parts: list[list[Example]] = field(default_factory=list)  # micro-batches, once they are cut
    losses: list[torch.Tensor] = field(default_factory=list)  # share of the step's loss of each, () each

    @property
    def num_tokens(self) -> int:
        """Tokens computed on this rank, each prompt once."""
        return 0 if self.stand_in else sum(example.num_tokens for example in self.examples)


@dataclass
class StepContext:
    """What a method's loss may look at beside the scores of its micro-batch."""

    counts: Counts  # denominators over the step and all ranks
    ref: Scores | None = None  # the reference model's scores of the same micro-batch
    teacher: Any = None  # what a method's own second model contributed (GKD)
    statistics: dict[str, Any] = field(default_factory=dict)  # whole-step statistics of coupled methods
    rows: slice | None = None  # this micro-batch's trees within the step's gathered statistics
    training: bool = True
    log: bool = True


def default_counts(examples: Sequence[Example]) -> Counts:
    """`trees`, `completions` and scored `tokens` of some examples (and `prompt_tokens` where prompts are scored)."""
    counts = {"trees": float(len(examples)), "completions": 0.0, "tokens": 0.0, "prompt_tokens": 0.0}
    for example in examples:
        counts["completions"] += len(example.completions)
        counts["tokens"] += sum(scored_tokens(example, i) for i in range(len(example.completions)))
        counts["prompt_tokens"] += max(0, len(example.prompt_ids) - 1) if example.score_prompt else 0
    return counts


def scored_tokens(example: Example, index: int) -> int:
    """Tokens of a completion that get a log-probability: mask 1, and something before them to be predicted from."""
    mask = example.mask(index)
    return sum(mask) - (mask[0] if not example.prompt_ids else 0)


def sum_over_ranks(counts: Mapping[str, float], world_size: int) -> Counts:
    """Element-wise sum of small dictionaries over all ranks."""
    if world_size == 1:
        return dict(counts)
    parts: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(parts, dict(counts))
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: sum(part.get(name, 0.0) for part in parts) for name in names}


@dataclass
class Gathered:
    """Per-row tensors of a whole step: rank by rank, micro-batch by micro-batch, and where this rank's rows begin."""

    values: dict[str, torch.Tensor]  # name -> (rows of the step, ...)
    offset: int  # first row of this rank
    sizes: list[int]  # rows of each of this rank's micro-batches

    def rows(self, index: int) -> slice:
        start = self.offset + sum(self.sizes[:index])
        return slice(start, start + self.sizes[index])


def gather_rows(parts: Sequence[Mapping[str, torch.Tensor]], world_size: int, device: torch.device) -> Gathered:
    """Concatenate per-row statistics of all micro-batches and ranks. Rows may differ in number between ranks."""
    names = list(dict.fromkeys(name for part in parts for name in part))
    sizes = [len(next(iter(part.values()))) if part else 0 for part in parts]
    local = {name: torch.cat([part[name].detach() for part in parts if part]).cpu() for name in names}
    if world_size == 1:
        return Gathered({name: value.to(device) for name, value in local.items()}, 0, sizes)
    everyone: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(everyone, local)
    rank = torch.distributed.get_rank()
    first = next(iter(names), None)
    offset = sum(len(part[first]) for part in everyone[:rank] if first in part) if first else 0
    names = list(dict.fromkeys(name for part in everyone for name in part))
    values = {name: torch.cat([part[name] for part in everyone if name in part]).to(device) for name in names}
    return Gathered(values, offset, sizes)


def tree_field(batch: Batch, name: str, *, dtype: torch.dtype | None = None) -> torch.Tensor:
    """An extra that every tree of a batch carries, as a tensor (B,)."""
    values = [example.extras[name] for example in batch.examples]
    return torch.tensor(values, dtype=dtype, device=batch.targets.device)


def token_field(batch: Batch, name: str) -> torch.Tensor:
    """A per-token extra (one list of numbers per completion) in the flat order of the scored tokens, (N,) float64."""
    parts = []
    for example in batch.examples:
        for index, values in enumerate(example.extras[name]):
            keep = torch.tensor(example.mask(index), dtype=torch.bool)
            if not example.prompt_ids and len(keep):
                keep[0] = False
            parts.append(torch.as_tensor(values, dtype=torch.float64)[keep])
    return torch.cat(parts).to(batch.targets.device)


def token_lists(batch: Batch, name: str, values: torch.Tensor) -> None:
    """Write per-token values (N,) into the trees' extras: a list per completion, 0 where a token is not scored."""
    sizes = torch.bincount(batch.segment, minlength=batch.num_completions).tolist()
    parts = iter(values.detach().cpu().split(sizes))
    for example in batch.examples:
        lists = []
        for index in range(len(example.completions)):
            mask = torch.tensor(example.mask(index), dtype=torch.bool)
            if not example.prompt_ids:
                mask[0] = False
            own = next(parts)
            lists.append(own.new_zeros(len(mask)).masked_scatter(mask, own).tolist())
        example.extras[name] = lists


def completion_field(batch: Batch, name: str, *, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A per-completion extra (one list per tree) as a tensor (S,)."""
    values = [value for example in batch.examples for value in example.extras[name]]
    return torch.tensor(values, dtype=dtype, device=batch.targets.device)
