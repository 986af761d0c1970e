"""What lives in memory while something is computed, forward and backward: the largest tensor, the peak of all bytes."""

from __future__ import annotations

import weakref
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class Seen:
    """A tensor that an operation made."""

    elements: int
    shape: tuple[int, ...]
    operation: str


class LiveTensors(TorchDispatchMode):
    """Within this context, follows the storage of every tensor that an operation makes until it is freed.

    Operations are seen as the backend gets them, those of backward passes and of autograd functions included.
    Parameters and what was made before do not count.

        with LiveTensors(vocabulary=4096, weights={(4096, 32)}) as live:
            loss.backward()
        live.largest, live.peak_bytes, live.peak_logit_bytes

    Args:
        vocabulary: a tensor with a dimension of this size holds logits, or what is made of them.
        weights: shapes that have such a dimension and hold none: weights, their gradients and their copies.
    """

    def __init__(self, vocabulary: int, weights: Collection[tuple[int, ...]] = ()) -> None:
        super().__init__()
        self.vocabulary, self.weights = vocabulary, set(weights)
        self.largest: Seen | None = None  # of the tensors with a dimension of the vocabulary
        self.peak_bytes = self.peak_logit_bytes = 0
        self._bytes = self._logit_bytes = 0
        self._sizes: dict[int, tuple[int, bool]] = {}  # storage -> (bytes, whether they are logits)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in strided(args, kwargs):
            self._follow(tensor, made_here=False)
        result = func(*args, **(kwargs or {}))
        for tensor in strided(result):
            self._note(tensor, str(func))
        return result

    def _note(self, tensor: torch.Tensor, operation: str) -> None:
        shape = tuple(tensor.shape)
        logits = self.vocabulary in shape and shape not in self.weights
        if logits and (self.largest is None or tensor.numel() > self.largest.elements):
            self.largest = Seen(tensor.numel(), shape, operation)
        self._follow(tensor, made_here=True, logits=logits)

    def _follow(self, tensor: torch.Tensor, *, made_here: bool, logits: bool = False) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._sizes:
            return
        size = storage.nbytes() if made_here else 0
        self._sizes[key] = size, logits
        weakref.finalize(storage, self._freed, key).atexit = False
        self._bytes += size
        self._logit_bytes += size * logits
        self.peak_bytes = max(self.peak_bytes, self._bytes)
        self.peak_logit_bytes = max(self.peak_logit_bytes, self._logit_bytes)

    def _freed(self, key: int) -> None:
        size, logits = self._sizes.pop(key)
        self._bytes -= size
        self._logit_bytes -= size * logits


def strided(*values: Any) -> list[torch.Tensor]:
    """The ordinary tensors within nested containers."""
    leaves = tree_leaves(values)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.layout is torch.strided]


def weight_shapes(*models: torch.nn.Module) -> set[tuple[int, ...]]:
    """Shapes of the parameters of models, and of their transposes."""
    shapes = {tuple(p.shape) for model in models for p in model.parameters()}
    return shapes | {shape[::-1] for shape in shapes}
