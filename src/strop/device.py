"""The device that a model is on: which float is the widest there, and how numbers come to it and back.

An accelerator works behind the process that drives it. A copy from ordinary memory and every number that is read wait
until all that was asked of it before is done, and meanwhile nothing new is asked. So what a batch needs is made on the
host and sent in one copy from pinned memory (`sent`, `sent_together`), what is wanted later sets out at once and is
looked at when it has come (`Fetched`), and what is logged is read in one go (`read`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

PINNING = frozenset(("cuda", "xpu"))
"""Kinds of devices that copy from and to pinned memory while both sides work."""
ALIGNED = 16
"""Numbers between the places of tensors that share a copy, so that kernels may read each in wide loads."""


def has_float64(device: torch.device) -> bool:
    """Whether a device computes in float64. Apple's does not, and not every one of Intel's."""
    if device.type == "xpu":
        return bool(torch.xpu.get_device_properties(device).has_fp64)
    return device.type != "mps"


def wide_dtype(device: torch.device) -> torch.dtype:
    """The float that sums are taken in: float64, or float32 on a device that has none."""
    return torch.float64 if has_float64(device) else torch.float32


def wide(values: torch.Tensor) -> torch.Tensor:
    """`values` in the widest float that their device has."""
    return values.to(wide_dtype(values.device))


def running_sum(values: torch.Tensor) -> torch.Tensor:
    """Sums of the first 1, 2, 3 ... entries of the last dimension, like `values`.

    In deterministic mode PyTorch refuses those of floats on CUDA, whose order is not fixed: the host takes them.
    """
    if copies_aside(values.device) and torch.are_deterministic_algorithms_enabled():
        return values.cpu().cumsum(-1).to(values.device)
    return values.cumsum(-1)


def copies_aside(device: torch.device) -> bool:
    """Whether copies between a device and pinned memory go on beside what is computed."""
    return device.type in PINNING


def sent(
    values: Sequence[Any] | torch.Tensor, device: torch.device | str | None, *, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Numbers of the host on a device, without waiting for what the device is at.

    Args:
        values: nested lists, or a tensor of the host.
        device: where they go; None or a CPU leaves them where they are.
        dtype: theirs; None: what torch makes of them. float64 becomes float32 where a device has none.
    """
    return sent_together({"": torch.as_tensor(values, dtype=dtype)}, device)[""]


def sent_together(tensors: Mapping[str, torch.Tensor], device: torch.device | str | None) -> dict[str, torch.Tensor]:
    """Tensors of the host on a device, in one copy for each dtype."""
    place = torch.device("cpu" if device is None else device)
    if place == torch.device("cpu"):
        return dict(tensors)
    kept = {name: t.to(wide_dtype(place)) if t.dtype == torch.float64 else t for name, t in tensors.items()}
    found: dict[str, torch.Tensor] = {}
    for dtype in dict.fromkeys(tensor.dtype for tensor in kept.values()):
        named = {name: tensor for name, tensor in kept.items() if tensor.dtype == dtype}
        starts, total = {}, 0
        for name, tensor in named.items():
            starts[name] = total
            total += -(-tensor.numel() // ALIGNED) * ALIGNED
        aside = copies_aside(place)
        buffer = torch.empty(total, dtype=dtype, pin_memory=aside and place.type in PINNING)
        for name, tensor in named.items():
            buffer[starts[name] : starts[name] + tensor.numel()] = tensor.reshape(-1)
        there = buffer.to(place, non_blocking=aside)
        for name, tensor in named.items():
            found[name] = there[starts[name] : starts[name] + tensor.numel()].view(tensor.shape)
    return {name: found[name] for name in tensors}


class Fetched:
    """A tensor on its way from its device to the host: the copy sets out when this is made, and nobody waits."""

    def __init__(self, tensor: torch.Tensor) -> None:
        tensor, device = tensor.detach(), tensor.device
        self._event: Any = None
        if copies_aside(device):
            pinned = device.type in PINNING
            self.host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
            self.host.copy_(tensor, non_blocking=True)
            if pinned:
                self._event = torch.Event(device)
                self._event.record()
        else:
            self.host = tensor.cpu()

    @property
    def has_come(self) -> bool:
        """Whether `take` would not wait."""
        return self._event is None or bool(self._event.query())

    def take(self) -> torch.Tensor:
        """The tensor in host memory; waits where it has not come yet."""
        if self._event is not None:
            self._event.synchronize()
        return self.host


def read(values: Iterable[Any]) -> list[float]:
    """Numbers and tensors () as numbers, with one wait for all that are on one device."""
    found = list(values)
    places: dict[torch.device, list[int]] = {}
    for index, value in enumerate(found):
        if isinstance(value, torch.Tensor):
            places.setdefault(value.device, []).append(index)
    for indices in places.values():
        numbers = torch.stack([wide(found[index].detach()).reshape(()) for index in indices]).tolist()
        for index, number in zip(indices, numbers, strict=True):
            found[index] = number
    return [float(value) for value in found]
