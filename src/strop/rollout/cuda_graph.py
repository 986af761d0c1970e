"""Decode steps as CUDA graphs: the whole step is launched at once instead of kernel by kernel.

A step of a small model takes longer to launch than to compute. A graph needs fixed shapes and addresses, so the
number of rows and the number of visible keys are rounded up to buckets and a graph is captured for each pair that
occurs often, inside one rollout (weights, their casts and the cache stay where they are for that long). Nothing that
a replay computes is believed unseen: the step after a capture runs both ways, with other tokens, lengths and positions
than those of the capture, and whatever is unusual switches graphs off for the rest of the rollout.

How many, and what they cost: buckets of rows are the powers of two up to the number of slots, buckets of keys two to an
octave up to the capacity, so 256 slots of 4096 keys have at most 9 * 8 graphs. All share one set of inputs,
one (slots, V) float32 tensor of logits, and one pool of memory, which holds the activations of the largest of them.
"""

from __future__ import annotations

import logging
from typing import Any

import torch

from strop.rollout.decoder import Decoder
from strop.rollout.kv_cache import StepPlan

logger = logging.getLogger(__name__)

_COLUMN_BUCKET = 256  # keys
_WARMUP_STEPS = 2
_AFTER_STEPS = 8  # eager steps of a number of rows before it is worth a capture; then more keys are captured at once
_TOLERANCE = 0.02  # of the largest logit, between a replay and the eager step, whose products have other shapes
Bucket = tuple[int, int]
"""Rows and keys that a graph is captured for."""


def row_bucket(rows: int, num_slots: int) -> int:
    """The number of rows a graph is captured for: the next power of two, at most the number of slots."""
    return min(1 << max(rows - 1, 0).bit_length(), num_slots)


def column_bucket(columns: int, capacity: int) -> int:
    """The number of keys a graph looks at: 256, 512, 768, 1024, 1536, 2048, 3072, ..., at most a slot's capacity.

    Two to an octave: a step reads all keys of its bucket, and with one to an octave up to twice those it needs.
    """
    bucket = octave = _COLUMN_BUCKET
    while bucket < columns:
        if bucket == 2 * octave:
            octave = bucket
        bucket += max(octave // 2, _COLUMN_BUCKET)
    return min(bucket, capacity)


class GraphedSteps:
    """`Decoder.step` for forked prompts, captured bucket by bucket."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.enabled = True
        self.replays = 0  # steps that were a replay alone
        self._graphs: dict[Bucket, torch.cuda.CUDAGraph] = {}  # inputs and logits are those of all
        self._believed: set[Bucket] = set()  # a replay has agreed with the eager step
        self._seen: dict[Bucket, int] = {}
        self._pool: Any = None  # memory that all graphs share; only one runs at a time
        self._inputs: Any = None  # (3, slots): ids, own, positions; made by the first capture
        self._logits: Any = None  # (slots, V), likewise

    def step(self, ids: torch.Tensor, plan: StepPlan) -> torch.Tensor:
        """As `Decoder.step`; the result is valid until the next step."""
        cache = self.decoder.cache
        bucket = (row_bucket(plan.num_rows, cache.num_slots), column_bucket(plan.capacity, cache.capacity))
        self._seen[bucket] = self._seen.get(bucket, 0) + 1
        after = 0 if any(rows == bucket[0] for rows, _ in self._graphs) else _AFTER_STEPS
        if not self.enabled or plan.groups or self._seen[bucket] <= after:
            return self.decoder.step(ids, plan)
        cache.reserve(bucket[1])
        if bucket in self._believed:
            self.replays += 1
            return self._replay(bucket, ids, plan)
        try:
            if bucket in self._graphs:
                return self._compare(bucket, ids, plan)
            eager = self.decoder.step(ids, plan)
            self._graphs[bucket] = self._capture(bucket, eager, ids, plan)
            return eager
        except Exception as error:
            # Any failure of a capture (host synchronisation in a mixture-of-experts layer, memory, an operator
            # without support) leaves the eager step, which is right and only slower.
            self.enabled = False
            self._graphs.clear()
            self._inputs = self._logits = None
            logger.warning("rollout: CUDA graphs are off, decoding goes on without them: %s", error)
            return self.decoder.step(ids, plan)  # writing the right keys at the same places

    def _replay(self, bucket: Bucket, ids: torch.Tensor, plan: StepPlan) -> torch.Tensor:
        self._fill(bucket[0], ids, plan)
        self._graphs[bucket].replay()
        return self._logits[: plan.num_rows]

    def _compare(self, bucket: Bucket, ids: torch.Tensor, plan: StepPlan) -> torch.Tensor:
        """The eager step, behind a replay that has to agree with it; what a wrong one wrote is written anew."""
        replayed = self._replay(bucket, ids, plan)
        eager = self.decoder.step(ids, plan)
        scale = float(eager.abs().max())
        worst = float((replayed - eager).abs().max())
        if not worst <= _TOLERANCE * scale:
            raise RuntimeError(f"the replay differs from the eager step by {worst:g} at logits of size {scale:g}")
        self._believed.add(bucket)
        return eager

    def _capture(self, bucket: Bucket, eager: torch.Tensor, ids: torch.Tensor, plan: StepPlan) -> torch.cuda.CUDAGraph:
        rows, columns = bucket
        slots = self.decoder.cache.num_slots
        if self._inputs is None:
            self._inputs = ids.new_zeros(3, slots)
            self._logits = eager.new_zeros(slots, eager.shape[-1])
            self._pool = torch.cuda.graph_pool_handle()
        self._fill(rows, ids, plan)
        fixed = StepPlan(own=self._inputs[1, :rows], positions=self._inputs[2, :rows], capacity=columns)
        stream = torch.cuda.Stream(device=ids.device)
        stream.wait_stream(torch.cuda.current_stream(ids.device))
        with torch.cuda.stream(stream):
            for _ in range(_WARMUP_STEPS):
                self.decoder.forward(self._inputs[0, :rows], fixed)
                fixed.forget_biases()
        torch.cuda.current_stream(ids.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads (rewards, loaders) may use the card meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            self._logits[:rows].copy_(self.decoder.forward(self._inputs[0, :rows], fixed))
        return graph

    def _fill(self, bucket_rows: int, ids: torch.Tensor, plan: StepPlan) -> None:
        """Copy a step's rows into the graphs' inputs; rows beyond them write to column 0 of slots that are free."""
        self._inputs[:, : plan.num_rows].copy_(torch.stack([ids, plan.own, plan.positions]))
        self._inputs[:, plan.num_rows : bucket_rows].zero_()
