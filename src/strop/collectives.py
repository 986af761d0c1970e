"""What ranks tell each other: counts added up, rows of a step one after the other; and how they meet."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist


def sum_over_ranks(counts: Mapping[str, float], world_size: int) -> dict[str, float]:
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


def meet(args: Any) -> None:
    """Make the process group of a run on CPUs: the parent would make it without `ddp_timeout`, and wait for ever."""
    known = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
    on_cpu = args.use_cpu or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "on")
    if on_cpu and known and int(os.environ["WORLD_SIZE"]) > 1 and not dist.is_initialized():
        dist.init_process_group(args.ddp_backend or "gloo", timeout=timedelta(seconds=args.ddp_timeout))
