"""Between host and device during a rollout: small copies down that nobody waits for, and one copy up per token.

A card works while the host goes on. It stands still wherever the host waits for it: where a number is asked of a
tensor, a list is made of one, a mask is an index, or memory that is not pinned is copied. A step of a rollout waits
once, for the tokens that it has drawn, because only the host knows whether a row ends (`draw.py`).
"""

from __future__ import annotations

from typing import Any

import torch


def asks_freely(device: torch.device) -> bool:
    """Whether a question to a tensor costs nothing, because its numbers lie in the host's memory."""
    return device.type == "cpu"


def upload(values: Any, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Numbers of the host as a tensor on the device; a card fetches them in its own time, from pinned memory."""
    held = torch.tensor(values, dtype=dtype)
    if device.type != "cuda":
        return held.to(device)
    return held.pin_memory().to(device, non_blocking=True)
