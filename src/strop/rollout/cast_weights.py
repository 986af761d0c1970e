"""Weights in the dtype of autocast, cast once per rollout instead of at every step.

Autocast casts a weight whenever a layer multiplies by it. It remembers the casts of weights that are trained, and
casts those of a frozen base model anew at each of the hundreds of steps of a rollout. Inside `cast_weights` the
linear layers find a copy in that dtype under the weight's name, so there is nothing left to cast but activations:
autocast stays on, its rules are what the trainer computes by, and the numbers are the same to the last bit. The copies
stay at their addresses for the length of the rollout, as CUDA graphs want it, and go with it: behind it the optimizer
needs the memory, and nothing tells reliably whether a weight has moved.

What is no linear layer (norms, embeddings, experts in one tensor) is left to autocast. An embedding that is tied to
the head keeps its width, as only the head's own attribute is replaced. A parameter itself is never touched: hooks of
DDP hang on it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from strop.rollout import limits
from strop.rollout.beginnings import Part
from strop.rollout.decoder import Decoder

logger = logging.getLogger(__name__)

_LAYERS = (nn.Linear, Conv1D)  # these very classes, whose forward gives weight and bias to one product
_MEMORY_SHARE = 0.5  # of the free memory, for the copies
_PROBE = 8  # tokens


@contextmanager
def cast_weights(models: Iterable[nn.Module], dtype: torch.dtype) -> Iterator[int]:
    """Linear layers of `models` read their weights in `dtype` inside the block, and as before behind it.

    To be entered under `torch.autocast` of the same dtype, with models that `can_be_cast`.

    Yields:
        Bytes of the copies; 0 where they do not fit into half of the free memory and nothing is replaced.
    """
    found = list(_castable(models, dtype))
    size = _size(found, dtype)
    if found and size > _MEMORY_SHARE * limits.free_bytes(found[0][2].device):
        logger.info("rollout: %.1f GB of cast weights do not fit; autocast casts them at every step", size / 1e9)
        found, size = [], 0
    copies: dict[int, torch.Tensor] = {}  # tied weights have one copy
    with ExitStack() as stack:
        for module, name, weight in found:
            if id(weight) not in copies:
                copies[id(weight)] = weight.detach().to(dtype)
            module.__dict__[name] = copies[id(weight)]  # found before the registered parameter
            stack.callback(module.__dict__.pop, name, None)
        yield size


def can_be_cast(model: nn.Module, ids: list[int], device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a few tokens have the same logits with cast weights as under autocast alone, to the last bit.

    Not so where a layer's weight is read by another layer, in a sum (DoRA's norms) and not in a product.
    """

    def logits() -> torch.Tensor:
        return Decoder(model, 1, 1).prefill([Part(0, ids[:_PROBE])], device)

    expected = logits()
    torch.clear_autocast_cache()  # the casts of trained weights would be held to the end of its block
    with cast_weights([model], dtype):
        same = torch.equal(logits(), expected)
    if not same:
        logger.info("rollout: the model computes other logits from cast weights; autocast casts them at every step")
    return same


def _castable(models: Iterable[nn.Module], dtype: torch.dtype) -> Iterator[tuple[nn.Module, str, torch.Tensor]]:
    """(layer, name, weight or bias) of what autocast would cast; it leaves float64 alone."""
    seen: set[int] = set()
    for model in models:
        for module in model.modules():
            if type(module) not in _LAYERS or id(module) in seen:
                continue
            seen.add(id(module))
            for name in ("weight", "bias"):
                value = getattr(module, name)
                wide = value is not None and value.is_floating_point() and value.dtype != torch.float64
                if wide and value.dtype != dtype and name not in vars(module):
                    yield module, name, value


def _size(found: list[tuple[nn.Module, str, torch.Tensor]], dtype: torch.dtype) -> int:
    return sum(weight.numel() for weight in {id(w): w for *_, w in found}.values()) * dtype.itemsize
