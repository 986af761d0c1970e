"""Activations in host memory between forward and backward: `activation_offloading`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

MIN_BYTES = 1 << 20  # below it a copy costs more time than its memory is worth


def offloaded_activations(
    model: nn.Module, min_bytes: int = MIN_BYTES, *, of: str = "cuda"
) -> torch.autograd.graph.saved_tensors_hooks:
    """Context in which what autograd saves of a forward pass moves to pinned host memory, and back when it is needed.

    Weights stay: they live on the device anyway, so a copy would cost time and free nothing. Autograd hands over views
    of them, the copies that mixed precision makes, and the whole weights that FSDP gathers for a layer; none of these
    is a parameter of the model. They are told by their storage or by the shape of a weight. An activation that has the
    shape of a weight by chance stays too.

    Copies run on the current stream, in order with the kernels that write and read them, so the device's memory is
    free for the next layer as soon as the copy is done.

    Args:
        model: whose weights stay.
        min_bytes: smaller tensors stay.
        of: the type of device whose tensors move.
    """
    weights = list(model.parameters())
    storages = {storage for weight in weights if (storage := storage_of(weight)) is not None}
    shapes = {tuple(weight.shape) for weight in weights if weight.dim() > 1}
    shapes |= {(*shape[:-2], shape[-1], shape[-2]) for shape in shapes}

    def pack(tensor: torch.Tensor) -> Any:
        if tensor.device.type != of or tensor.nbytes < min_bytes:
            return tensor
        if tuple(tensor.shape) in shapes or storage_of(tensor) in storages:
            return tensor
        host = torch.empty_like(tensor, device="cpu", pin_memory=of == "cuda")
        return tensor.device, host.copy_(tensor, non_blocking=True)

    def unpack(saved: Any) -> torch.Tensor:
        if isinstance(saved, torch.Tensor):
            return saved
        device, host = saved
        return host.to(device, non_blocking=True)

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


def storage_of(tensor: torch.Tensor) -> int | None:
    """Where a tensor's memory begins; None of one that has none of its own (shards know it, the whole does not)."""
    try:
        return tensor.untyped_storage().data_ptr() or None
    except (RuntimeError, NotImplementedError):
        return None
