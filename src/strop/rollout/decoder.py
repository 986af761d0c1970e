"""One model during a rollout: prompts in, cached keys inside, next-token logits out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from strop.device import sent
from strop.rollout.attention_hook import Decode, Prefill
from strop.rollout.beginnings import Part
from strop.rollout.kv_cache import KVCache, StepPlan


class Decoder:
    """A model and its cache. The weights are the caller's: nothing is copied, nothing has to be synchronised.

    Args:
        model: a causal language model whose attention is the rollout's (see `rollout_mode`).
        num_slots: most rows at a time.
        capacity: most keys of one slot, in tokens.
        context: entered around every forward pass (switching an adapter off, autocast).
    """

    def __init__(
        self,
        model: nn.Module,
        num_slots: int,
        capacity: int,
        context: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self.model = model
        self.cache = KVCache(num_slots, capacity)
        self.context = context
        self.prefilled_tokens = 0  # prompt tokens computed so far

    def prefill(self, parts: list[Part], device: torch.device) -> torch.Tensor:
        """Compute parts of prompts laid end to end, without padding, and keep their keys.

        Args:
            parts: each behind the one above it, if that is not computed already.

        Returns:
            Logits after the last token of every part, (len(parts), V).
        """
        segments: list[tuple[int, int | None, int, int]] = []
        ids: list[int] = []
        positions: list[int] = []
        last: list[int] = []
        for part in parts:
            segments.append((part.key, part.above, len(ids), len(ids) + len(part.ids)))
            ids += part.ids
            positions += range(part.start, part.start + len(part.ids))
            last.append(len(ids) - 1)
        self.prefilled_tokens += len(ids)
        flat, keep = (
            sent([ids, positions], device, dtype=torch.long),
            sent(last, device, dtype=torch.long),
        )  # (2, T), (parts,)
        with self.context():
            output = self.model(
                input_ids=flat[:1],
                position_ids=flat[1:],
                use_cache=False,
                logits_to_keep=keep,
                rollout=Prefill(self.cache, segments),
            )
        logits = output.logits[0]  # (parts, V); (T, V) from the few models that compute all logits
        return _wide(logits if len(logits) == len(last) else logits[keep])

    def step(self, ids: torch.Tensor, plan: StepPlan) -> torch.Tensor:
        """Feed one token per row, (R,), and return the logits of the next, (R, V)."""
        self.cache.reserve(plan.capacity)
        return self.forward(ids, plan)

    def forward(self, ids: torch.Tensor, plan: StepPlan) -> torch.Tensor:
        """`step` without its bookkeeping: device work only, so that it can be captured in a CUDA graph."""
        with self.context():
            output = self.model(
                input_ids=ids[:, None],
                position_ids=plan.positions[:, None],
                use_cache=False,
                rollout=Decode(self.cache, plan),
            )
        return _wide(output.logits[:, -1])  # (R, V)


def _wide(logits: torch.Tensor) -> torch.Tensor:
    """Logits in float32 or wider: a distribution must not be rounded to bfloat16 before it is sampled."""
    return logits if logits.dtype in (torch.float32, torch.float64) else logits.float()
