"""Before the first step: the longest rows that are known, forward and backward, and nothing of it kept.

What does not fit into memory, or cannot be computed, then fails in the first minute and not at the step whose rows
are the longest. Two micro-batches are computed, so that the second finds the gradients of the first, with as much
memory taken as the optimizer will need for its moments. Weights, optimizer, random states, running means, metrics and
remembered reference scores are afterwards what they were: a run with a rehearsal is the same run, byte for byte.
Sampling is not rehearsed: the first step samples a whole round as it is.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from strop.engine.metrics import MetricLog
from strop.engine.rows import first_example, flatten
from strop.engine.sharding import is_sharded
from strop.engine.step import zero_loss
from strop.engine.step_clock import peak_bytes
from strop.records import Example, StepWork

if TYPE_CHECKING:
    from strop.engine.trainer import BaseTrainer

LOOKED_AT = 256
"""Rows whose lengths are looked at where the set is tokenised as it is used."""
WORTH_IT = 50
"""A run of fewer steps is not rehearsed unless asked: two micro-batches would be more than a few percent of it."""
MOMENTS = ("adamw_torch", "adamw_torch_fused", "adamw_torch_xla", "adamw_anyprecision")
"""Optimizers with two float32 moments of each weight."""


@dataclass(frozen=True)
class Rehearsed:
    """What a rehearsal showed: its trees, the most tokens in one of them, seconds, and the peak of memory in bytes."""

    trees: list[Example]
    longest: int
    seconds: float
    peak: int


def why_not(trainer: BaseTrainer) -> str:
    asked, left = trainer.args.rehearsal, trainer.state.max_steps - trainer.state.global_step
    if asked is False:
        return "switched off"
    if is_sharded(trainer.accelerator):
        return "weights are sharded, and their engine counts every backward pass"
    if any(part in str(trainer.args.optim) for part in ("lomo", "layerwise")):
        return "the optimizer moves weights within the backward pass"
    return f"{left} steps are left" if asked is None and left < WORTH_IT else ""


def rehearse(trainer: BaseTrainer) -> Rehearsed:
    """Compute the longest rows known; to be called where everything is left `untouched`."""
    begin, model = time.perf_counter(), trainer.model_wrapped
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    examples = longest_known(trainer.train_dataset, 2 * trainer.args.train_batch_size)
    trees = [as_sampled(trainer, example) for example in examples]
    sampled = trees[0] is not examples[0]
    trees = [tree for part in trainer.plan(trees, trainer.args.train_batch_size)[:2] for tree in part]
    work = StepWork(trees, trainer.counts(trees), stand_in=True) if sampled else trainer.make_work(trees)
    trainer.score_options()  # bytes of logits are chosen by what is free before the moments take their place
    held = moments(trainer)
    model.train()
    for micro in trainer.micro_batches(model, work, training=True):
        trainer.backward(zero_loss(micro.scores) if micro.output is None else trainer.reduce(micro.output, micro))
    del held
    peak = peak_bytes()
    return Rehearsed(trees, max(tree.num_tokens for tree in trees), time.perf_counter() - begin, peak)


@contextlib.contextmanager
def untouched(trainer: BaseTrainer) -> Iterator[None]:
    """What is done inside leaves no trace in the run."""
    python, numpy = random.getstate(), np.random.get_state()
    extra, metrics, scores = copy.deepcopy(trainer.extra_state()), trainer._metrics, trainer.reference_scores
    modes = [(module, module.training) for module in trainer.model_wrapped.modules()]
    confirmed, remembers = trainer._layout_confirmed, scores is not None and scores.remembers
    trainer._metrics = {name: MetricLog() for name in metrics}
    if scores is not None:
        scores.remembers = False
    try:
        with torch.random.fork_rng():
            yield
    finally:
        for module, training in modes:
            module.training = training
        trainer.model_wrapped.zero_grad(set_to_none=True)
        random.setstate(python)
        np.random.set_state(numpy)
        trainer.load_extra_state(extra)
        trainer._metrics, trainer._layout_confirmed = metrics, confirmed
        if scores is not None:
            scores.remembers = remembers
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def longest_known(dataset: Any, count: int) -> list[Example]:
    """The `count` longest trees of a set, as far as lengths are known; repeated where the set has fewer."""
    if not hasattr(dataset, "__len__"):
        return [first_example(dataset)] * count
    lengths = getattr(dataset, "lengths", None)
    if lengths is None:
        lengths = [tree.num_tokens for tree in flatten([dataset[i] for i in range(min(len(dataset), LOOKED_AT))])]
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    return flatten([dataset[index] for index in islice(cycle(order), count)])


def as_sampled(trainer: BaseTrainer, example: Example) -> Example:
    """A row of prompts with completions as long as may be sampled; any other row as it is."""
    tree = trainer.prepare_stand_in(example)
    if tree is example:
        return example
    length = trainer.args.max_completion_length or len(tree.completions[0])
    drawn = random.Random(0)  # completions that begin alike would be computed once
    pairs = getattr(trainer, "batch_counts", "") == "prompts"
    count = 2 if pairs else min(getattr(trainer, "group_size", 1), trainer.args.train_batch_size)
    completions = [drawn.choices(tree.prompt_ids, k=length) for _ in range(count)]
    return dataclasses.replace(tree, completions=completions)


def moments(trainer: BaseTrainer) -> list[torch.Tensor]:
    """Memory as the optimizer will take it at its first step; none where it has it, or takes less."""
    optim = getattr(trainer.args.optim, "value", trainer.args.optim)
    if optim not in MOMENTS or (trainer.optimizer is not None and trainer.optimizer.state):
        return []
    trained = [parameter for parameter in trainer.policy.parameters() if parameter.requires_grad]
    return [torch.empty_like(each, dtype=torch.float32) for each in trained for _ in range(2)]
