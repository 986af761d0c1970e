"""What lives in memory while something is computed: the largest tensor of logits, the peak of all bytes."""

from __future__ import annotations

import weakref
from collections.abc import Collection
from typing import Any

import torch

from strop.testing.memory_checks import LargestLogits, strided


class LiveTensors(LargestLogits):
    """`LargestLogits` that also follows the storage of every tensor that an operation makes until it is freed.

    Parameters and what was made before do not count.

        with LiveTensors(vocabulary=4096, weights={(4096, 32)}) as live:
            loss.backward()
        live.largest, live.peak_bytes, live.peak_logit_bytes
    """

    def __init__(self, vocabulary: int, weights: Collection[tuple[int, ...]] = ()) -> None:
        super().__init__(vocabulary, weights)
        self.peak_bytes = self.peak_logit_bytes = 0
        self._bytes = self._logit_bytes = 0
        self._sizes: dict[int, tuple[int, bool]] = {}  # storage -> (bytes, whether they are logits)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in strided(args, kwargs):
            self._follow(tensor, made_here=False)
        result = super().__torch_dispatch__(func, types, args, kwargs)
        for tensor in strided(result):
            self._follow(tensor, made_here=True, logits=self.is_logits(tensor))
        return result

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
