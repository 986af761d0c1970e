"""What ranks tell each other: counts added up, rows of a step one after the other; and how they meet.

Numbers that the host has (counts, metrics that were read) travel between hosts, over gloo: no device is asked, so none
is waited for. What the device has stays there: rows of a step are gathered as bytes, in one call. Nothing is pickled.
"""

from __future__ import annotations

import json
import math
import os
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

_hosts: tuple[Any, Any] = (None, None)  # weak references: the default group, and that of the hosts beside it, if any
_patience: timedelta | None = None  # that the run has with its ranks


def sum_over_ranks(counts: Mapping[str, float], world_size: int) -> dict[str, float]:
    """Element-wise sum of small dictionaries over all ranks, in the order of the ranks."""
    if world_size == 1:
        return dict(counts)
    parts = gather_numbers(counts, world_size)
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: sum(part.get(name, 0.0) for part in parts) for name in names}


def gather_numbers(numbers: Mapping[str, float], world_size: int) -> list[dict[str, float]]:
    """The numbers of every rank under their names, rank by rank. Ranks may have different names."""
    return _told({name: float(value) for name, value in numbers.items()}, world_size)


def gather_tensors(
    local: Mapping[str, torch.Tensor], world_size: int, device: torch.device
) -> list[dict[str, torch.Tensor]]:
    """The tensors (rows, ...) of every rank, rank by rank; `device` is where this rank's lie, and the answer will.

    Ranks may have different rows, and lack names. What each has the hosts tell each other.
    """
    kinds = [(name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)) for name, tensor in local.items()]
    everyone = _told(kinds, world_size)
    own = [tensor.detach().contiguous().reshape(-1).view(torch.uint8) for tensor in local.values()]
    longest = max(sum(_size(kind, shape) for _, kind, shape in part) for part in everyone)
    padding = torch.zeros(longest - sum(map(len, own)), dtype=torch.uint8, device=device)
    buffer = torch.cat([*own, padding])
    buffers = _gathered(buffer, world_size) if longest else [buffer] * world_size
    return [_unpacked(part, each) for part, each in zip(everyone, buffers, strict=True)]


def _unpacked(kinds: Sequence[tuple[str, str, list[int]]], buffer: torch.Tensor) -> dict[str, torch.Tensor]:
    """The tensors that lie in the bytes of a rank one after the other: name, dtype and shape of each."""
    found, start = {}, 0
    for name, kind, shape in kinds:
        own = buffer[start : start + _size(kind, shape)].clone()  # a place of its own, aligned for its dtype
        found[name] = own.view(getattr(torch, kind)).view(shape)
        start += len(own)
    return found


def _size(kind: str, shape: Sequence[int]) -> int:
    return math.prod(shape) * getattr(torch, kind).itemsize


def _told(said: Any, world_size: int) -> list[Any]:
    """What the host of every rank says, as JSON, which gives every float back as it was."""
    if world_size == 1:
        return [said]
    text = json.dumps(said).encode()
    sizes = _gathered(torch.tensor([len(text)]), world_size)
    padded = text.ljust(int(max(sizes)))
    texts = _gathered(torch.frombuffer(bytearray(padded), dtype=torch.uint8), world_size)
    return [json.loads(each.numpy().tobytes()) for each in texts]


def _gathered(tensor: torch.Tensor, world_size: int) -> list[torch.Tensor]:
    """A tensor of every rank, all of one size: of hosts over gloo, of devices where they are."""
    every = [torch.empty_like(tensor) for _ in range(world_size)]
    dist.all_gather(every, tensor, group=hosts() if tensor.device.type == "cpu" else None)
    return every


def hosts() -> Any:
    """The group in which hosts tell each other numbers: the default one where that is gloo, else one beside it.

    It is made on first use, which all ranks come to together. Neither is held here: a group that outlives
    `destroy_process_group` has threads that run when Python ends, and the process would abort.
    """
    global _hosts
    default = dist.group.WORLD
    if _hosts[0] is None or _hosts[0]() is not default:
        shared = dist.get_backend(default) == "gloo"
        beside = None if shared else weakref.ref(dist.new_group(backend="gloo", timeout=_patience))
        _hosts = weakref.ref(default), beside
    return None if _hosts[1] is None else _hosts[1]()


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
    local = {name: torch.cat([part[name].detach() for part in parts if part]).to(device) for name in names}
    if world_size == 1:
        return Gathered(local, 0, sizes)
    everyone = gather_tensors(local, world_size, device)
    rank = dist.get_rank()
    first = next(iter(names), None)
    offset = sum(len(part[first]) for part in everyone[:rank] if first in part) if first else 0
    names = list(dict.fromkeys(name for part in everyone for name in part))
    values = {name: torch.cat([part[name] for part in everyone if name in part]) for name in names}
    return Gathered(values, offset, sizes)


def meet(args: Any) -> None:
    """Make the process group of a run on CPUs: the parent would make it without `ddp_timeout`, and wait for ever."""
    global _patience
    _patience = timedelta(seconds=args.ddp_timeout)
    known = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
    on_cpu = args.use_cpu or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "on")
    if on_cpu and known and int(os.environ["WORLD_SIZE"]) > 1 and not dist.is_initialized():
        dist.init_process_group(args.ddp_backend or "gloo", timeout=_patience)
