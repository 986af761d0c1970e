"""Decode steps as CUDA graphs: the whole step is launched at once instead of kernel by kernel.

A step of a small model takes longer to launch than to compute. A graph needs fixed shapes and addresses, so the
number of rows and the number of visible keys are rounded up to buckets and a graph is captured for each pair that
occurs, inside one rollout (weights and cache stay where they are for that long). The first replay is compared with
the eager step; whatever is unusual switches graphs off for the rest of the rollout and the eager step goes on.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch

from strop.rollout.decoder import Decoder
from strop.rollout.kv_cache import StepPlan

logger = logging.getLogger(__name__)

_COLUMN_BUCKET = 256  # keys
_WARMUP_STEPS = 2
_AFTER_STEPS = 8  # eager steps of one bucket before it is worth a capture


def row_bucket(rows: int, num_slots: int) -> int:
    """The number of rows a graph is captured for: the next power of two, at most the number of slots."""
    return min(1 << max(rows - 1, 0).bit_length(), num_slots)


def column_bucket(columns: int, capacity: int) -> int:
    """The number of keys a graph looks at: 256, 512, 1024, ..., at most the capacity of a slot."""
    bucket = _COLUMN_BUCKET
    while bucket < columns:
        bucket *= 2
    return min(bucket, capacity)


@dataclass(slots=True)
class _Captured:
    """A graph and the tensors it reads and writes."""

    graph: torch.cuda.CUDAGraph
    ids: torch.Tensor  # (R,)
    plan: StepPlan
    logits: torch.Tensor  # (R, V)


class GraphedSteps:
    """`Decoder.step` for forked prompts, captured bucket by bucket."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.enabled = True
        self._captured: dict[tuple[int, int], _Captured] = {}
        self._seen: dict[tuple[int, int], int] = {}
        self._pool: Any = None  # memory that all graphs share; only one runs at a time

    def step(self, ids: torch.Tensor, plan: StepPlan) -> torch.Tensor:
        """As `Decoder.step`; the result is valid until the next step."""
        cache = self.decoder.cache
        bucket = (row_bucket(plan.num_rows, cache.num_slots), column_bucket(plan.capacity, cache.capacity))
        self._seen[bucket] = self._seen.get(bucket, 0) + 1
        if not self.enabled or plan.groups or self._seen[bucket] <= _AFTER_STEPS:
            return self.decoder.step(ids, plan)
        cache.reserve(bucket[1])
        if bucket not in self._captured:
            return self._capture_checked(bucket, ids, plan)
        return self._replay(self._captured[bucket], ids, plan)

    def _replay(self, captured: _Captured, ids: torch.Tensor, plan: StepPlan) -> torch.Tensor:
        rows = plan.num_rows
        _fill(captured, ids, plan)
        captured.graph.replay()
        return captured.logits[:rows]

    def _capture_checked(self, bucket: tuple[int, int], ids: torch.Tensor, plan: StepPlan) -> torch.Tensor:
        """Capture a bucket, compare its first replay with the eager step, and return the eager logits."""
        eager = self.decoder.step(ids, plan)  # writing the same keys again at the same places changes nothing
        try:
            captured = self._capture(bucket, ids, plan)
            replayed = self._replay(captured, ids, plan)
            scale = float(eager.abs().max())
            worst = float((replayed - eager).abs().max())
            if not worst <= 0.02 * scale:
                raise RuntimeError(f"the replay differs from the eager step by {worst:g} at logits of size {scale:g}")
            self._captured[bucket] = captured
        except Exception as error:
            # Any failure of a capture (host synchronisation in a mixture-of-experts layer, memory, an operator
            # without support) leaves the eager step, which is right and only slower.
            self.enabled = False
            self._captured.clear()
            logger.warning("rollout: CUDA graphs are off, decoding goes on without them: %s", error)
        return eager

    def _capture(self, bucket: tuple[int, int], ids: torch.Tensor, plan: StepPlan) -> _Captured:
        rows, columns = bucket
        zeros = torch.zeros(rows, dtype=ids.dtype, device=ids.device)
        captured = _Captured(
            graph=torch.cuda.CUDAGraph(),
            ids=zeros.clone(),
            plan=StepPlan(own=zeros.clone(), positions=zeros.clone(), capacity=columns),
            logits=zeros,
        )
        _fill(captured, ids, plan)
        stream = torch.cuda.Stream(device=ids.device)
        stream.wait_stream(torch.cuda.current_stream(ids.device))
        with torch.cuda.stream(stream):
            for _ in range(_WARMUP_STEPS):
                self.decoder.forward(captured.ids, captured.plan)
                captured.plan.forget_biases()
        torch.cuda.current_stream(ids.device).wait_stream(stream)
        self._pool = torch.cuda.graph_pool_handle() if self._pool is None else self._pool
        with torch.cuda.graph(captured.graph, pool=self._pool):
            captured.logits = self.decoder.forward(captured.ids, captured.plan)
        return captured


def _fill(captured: _Captured, ids: torch.Tensor, plan: StepPlan) -> None:
    """Copy a step's rows into the graph's tensors; rows beyond them write to column 0 of slots that are free."""
    rows = plan.num_rows
    for static, value in (
        (captured.ids, ids),
        (captured.plan.own, plan.own),
        (captured.plan.positions, plan.positions),
    ):
        static[:rows].copy_(value)
        static[rows:].zero_()
