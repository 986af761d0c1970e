"""Linear layers in the weight layout that the CPU's matrix kernels want, for the length of a rollout.

A decode step multiplies a few rows by every weight of the model. In torch's row-major layout the kernel rearranges
each weight on every call; rearranged once per rollout, 5 to 64 rows take 1.2 to 2.5 times less time and the head 1.6
to 3.4 times (float32, AVX-512), and rows no longer see different kernels at different batch sizes. It costs a second
copy of the packed weights while the rollout runs, so only the head is packed where memory is short.

A contiguous transposed head weight with `mm(out=)` was tried too: on this kind of CPU it gains nothing at 8 to 64 rows.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import nn

logger = logging.getLogger(__name__)

_DTYPES = (torch.float32, torch.bfloat16)
_MEMORY_SHARE = 0.25  # of the available memory, for packed copies of other layers than the head
_MIN_STEPS = 16  # packing costs about as much as three decode steps


@contextmanager
def packed_linears(models: Iterable[nn.Module], steps: int) -> Iterator[int]:
    """Run the `nn.Linear` layers of `models` from packed weights inside the block.

    Layers are replaced by an attribute on the instance and restored at the end, whatever happens. Weights are packed
    anew every time, because nothing tells reliably whether they have changed.

    Args:
        models: modules on any device; only float32 and bfloat16 layers on the CPU are touched.
        steps: about how many decode steps will run; short rollouts do not pay for packing.

    Yields:
        Bytes of the packed copies.
    """
    layers = _candidates(models) if steps >= _MIN_STEPS else []
    packs: dict[tuple, torch.Tensor] = {}
    with ExitStack() as stack:
        for layer in _affordable(layers):
            weight = layer.weight.detach()
            name = (weight.data_ptr(), tuple(weight.shape), weight.dtype)
            if name not in packs:
                packs[name] = torch.ops.mkldnn._reorder_linear_weight(weight)
            layer.__dict__["forward"] = _PackedForward(packs[name], layer)
            stack.callback(layer.__dict__.pop, "forward", None)
        yield sum(name[1][0] * name[1][1] * name[2].itemsize for name in packs)


class _PackedForward:
    """`F.linear` with a packed weight; with the layer's own where autocast or the input asks for another dtype."""

    __slots__ = ("bias", "layer", "packed")

    def __init__(self, packed: torch.Tensor, layer: nn.Linear) -> None:
        self.packed, self.layer = packed, layer
        self.bias = None if layer.bias is None else layer.bias.detach()

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        if hidden.dtype != self.layer.weight.dtype or torch.is_autocast_enabled("cpu"):
            return nn.functional.linear(hidden, self.layer.weight, self.layer.bias)
        return torch.ops.mkldnn._linear_pointwise(hidden, self.packed, self.bias, "none", [], "")


def _candidates(models: Iterable[nn.Module]) -> list[nn.Linear]:
    """Plain linear layers on the CPU, the widest (the head) first."""
    found: dict[int, nn.Linear] = {}
    if torch.is_autocast_enabled("cpu"):  # packed weights would not be used
        return []
    for model in models:
        for module in model.modules():
            if type(module) is not nn.Linear or "forward" in module.__dict__:
                continue
            if module.weight.device.type != "cpu" or module.weight.dtype not in _DTYPES:
                continue
            plain = type(module.weight) in (nn.Parameter, torch.Tensor) and module.weight.is_contiguous()
            if plain and _packing_works(module.weight.dtype):
                found[id(module)] = module
    return sorted(found.values(), key=lambda layer: -layer.weight.numel())


def _affordable(layers: list[nn.Linear]) -> list[nn.Linear]:
    """The head, and the other layers where their packed copies fit into a share of the free memory."""
    if not layers:
        return []
    size = sum(layer.weight.numel() * layer.weight.element_size() for layer in layers)
    if size <= _MEMORY_SHARE * available_memory_bytes():
        return layers
    logger.info("rollout: %.1f GB of packed weights do not fit; packing the head only", size / 1e9)
    return layers[:1]


def available_memory_bytes() -> int:
    """Memory of this machine that can be used without swapping; 1 GiB where it cannot be told."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return 1 << 30


@functools.cache
def _packing_works(dtype: torch.dtype) -> bool:
    """Whether torch's private packed operators exist here for a dtype and agree with `F.linear`; tested once per
    process. For bfloat16 they need AVX-512."""
    try:
        layer = nn.Linear(32, 48, device="meta", dtype=dtype).to_empty(device="cpu")  # made without random numbers
        with torch.no_grad():
            layer.weight.copy_(torch.sin(torch.arange(48 * 32, dtype=torch.float32)).view(48, 32))
            layer.bias.copy_(torch.cos(torch.arange(48)))
            hidden = torch.cos(torch.arange(3 * 32, dtype=torch.float32)).view(3, 1, 32).to(dtype)
            packed = _PackedForward(torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach()), layer)
            return torch.allclose(packed(hidden), layer(hidden), atol=1e-4 if dtype == torch.float32 else 0.1)
    except (RuntimeError, AttributeError, TypeError):
        return False
