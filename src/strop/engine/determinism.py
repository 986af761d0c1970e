"""Whether a run that is gone on with, or made again, ends with the same bytes, and what to do where it does not."""

from __future__ import annotations

import torch


def repeats(device: torch.device) -> str:
    """What this process will do when it is run again on the same rows and device, in a line.

    On a CPU sums have one order. On a card the gradient of attention, and of everything that is picked out by an index,
    is added up by atomic operations, in the order in which threads end; PyTorch has kernels of a fixed order for them,
    which it takes where deterministic algorithms are asked for without `warn_only`.
    """
    if device.type == "cpu":
        return "to the last byte"
    if not torch.are_deterministic_algorithms_enabled():
        return "but for rounding: sums have no fixed order on this device; full_determinism=True fixes it, slower"
    if torch.is_deterministic_algorithms_warn_only_enabled():
        return (
            "but for rounding: warn_only=True leaves kernels without a fixed order in place; call "
            "torch.use_deterministic_algorithms(True), or set full_determinism=True"
        )
    return "to the last byte on a device of this kind, as far as PyTorch's deterministic kernels go (full_determinism)"
