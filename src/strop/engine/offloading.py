"""Activations in host memory between forward and backward: `activation_offloading`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

MIN_BYTES = 1 << 20  # below it a copy costs more time than its memory is worth


def offloaded_activations(min_bytes: int = MIN_BYTES) -> torch.autograd.graph.saved_tensors_hooks:
    """Context in which what autograd saves on a CUDA device moves to pinned host memory, and back when it is needed.

    Parameters stay: they live on the device anyway. Copies run on the current stream, in order with the kernels that
    write and read them, so the device's memory is free for the next layer as soon as the copy is done.
    """

    def pack(tensor: torch.Tensor) -> Any:
        if not tensor.is_cuda or tensor.nbytes < min_bytes or isinstance(tensor, nn.Parameter):
            return tensor
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return tensor.device, host.copy_(tensor, non_blocking=True)

    def unpack(saved: Any) -> torch.Tensor:
        if isinstance(saved, torch.Tensor):
            return saved
        device, host = saved
        return host.to(device, non_blocking=True)

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)
