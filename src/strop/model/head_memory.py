"""How many bytes logits may take where nobody says: by the device, and by what is free on it.

With more of them more tokens are scored at a time, and their residuals stay for the backward pass, which else computes
the logits again. With too many of them activations and the optimizer do not fit.
"""

from __future__ import annotations

from typing import Any

import torch

from strop.model.shards import local_part

LEAST, MOST = 512 << 20, 8 << 30
SHARE = 8
"""One part in so many of the free memory is for logits."""
GRADIENT_BYTES, STATE_BYTES = 4, 8
"""Of each trained weight: its gradient, and two moments of AdamW."""


def default_head_bytes(device: torch.device, to_come: int = 0) -> int:
    """Bytes that logits may take by default: 512 MB on a CPU, elsewhere `share_of` what is free.

    Args:
        device: where the logits are computed.
        to_come: bytes that are free now and will be taken for good, by gradients and the optimizer's state.
    """
    free = None if device.type == "cpu" else free_bytes(device)
    return LEAST if free is None else share_of(free - to_come)


def share_of(free: int) -> int:
    """An eighth of the free bytes, rounded down to a power of two, and within 512 MB and 8 GB.

    Rounded, so that runs and ranks with about the same memory cut their chunks alike.
    """
    share = max(free // SHARE, 1)
    return min(max(1 << (share.bit_length() - 1), LEAST), MOST)


def free_bytes(device: torch.device) -> int | None:
    """Bytes that new tensors can have on a device, with those that PyTorch holds and does not use; None: not known."""
    module: Any = getattr(torch, device.type, None)
    if not hasattr(module, "mem_get_info"):
        return None
    unused = module.memory_reserved(device) - module.memory_allocated(device)
    return int(module.mem_get_info(device)[0] + unused)


def bytes_to_come(policy: torch.nn.Module, optimizer: Any) -> int:
    """Bytes that gradients and the optimizer's state will take on this device, and do not take yet."""
    trained = sum(local_part(p).numel() for p in policy.parameters() if p.requires_grad)
    return trained * (GRADIENT_BYTES + (0 if getattr(optimizer, "state", None) else STATE_BYTES))
