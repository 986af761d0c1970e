"""Weights that are cut into shards over ranks (FSDP2, DeepSpeed's ZeRO-3): how large one is, what this rank holds."""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.tensor import DTensor


def size_of(weight: torch.Tensor) -> int:
    """How many entries a weight has on all ranks together; between two passes ZeRO-3 leaves an empty one in its
    place."""
    return int(getattr(weight, "ds_numel", weight.numel()))


def local_part(weight: torch.Tensor) -> torch.Tensor:
    """What this rank holds of a weight: all of it where it is not cut."""
    if isinstance(weight, DTensor):
        return weight.to_local()
    held: Any = getattr(weight, "ds_tensor", None)
    return weight if held is None else held
