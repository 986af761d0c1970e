"""Checks of what a step holds in memory."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from strop.model import base_model
from strop.model.forward import vocab_size
from strop.testing.cases import examples_of
from strop.testing.subject import NotApplicable, Subject

ROWS_AT_ONCE = 4


def no_full_logits(subject: Subject) -> None:
    """With room for four rows of logits, no step holds those of all its scored tokens, in forward or backward."""
    trainer = subject.trainer(fixed=True, per_device_train_batch_size=len(subject.rows))
    if trainer.task != "causal":
        raise NotApplicable(f"a model with a {trainer.task} head computes no logits over the vocabulary")
    vocabulary = vocab_size(base_model(trainer.policy))
    if vocabulary is None:
        raise NotApplicable("the size of the model's vocabulary is not known")
    row_bytes = vocabulary * next(trainer.policy.parameters()).element_size()
    trainer.args.head_memory_mb = ROWS_AT_ONCE * row_bytes / 2**20  # below what a user may set: the model is tiny
    if hasattr(trainer.args, "chunk_tokens"):
        trainer.args.chunk_tokens = ROWS_AT_ONCE
    trainer.state.logging_steps = 1
    models = [trainer.model, *filter(None, [getattr(trainer, "teacher", None)])]
    with LargestLogits(vocabulary, weight_shapes(*models)) as seen:
        work = trainer.make_work(trainer.prepare_step(examples_of(trainer)))
        trainer.training_step(trainer.model, work)
    tokens = int(work.counts["tokens"])
    if tokens < 3 * ROWS_AT_ONCE:
        raise NotApplicable(f"{tokens} scored tokens are too few to tell a part of them from all")
    assert seen.largest is None or seen.largest.elements < tokens * vocabulary, (
        f"{seen.largest.operation} made a tensor {seen.largest.shape} of logits, all of the {tokens} scored tokens at "
        "once; score them with Want.LOGPS, or work on the hidden states in chunks"
    )


@dataclass(frozen=True)
class Seen:
    """A tensor that an operation made."""

    elements: int
    shape: tuple[int, ...]
    operation: str


class LargestLogits(TorchDispatchMode):
    """Within this context, looks at every tensor that an operation makes.

    Operations are seen as the backend gets them, those of backward passes and of autograd functions included.

        with LargestLogits(vocabulary=4096, weights={(4096, 32)}) as seen:
            loss.backward()
        seen.largest

    Args:
        vocabulary: a tensor with a dimension of this size holds logits, or what is made of them.
        weights: shapes that have such a dimension and hold none: weights, their gradients and their copies.
    """

    def __init__(self, vocabulary: int, weights: Collection[tuple[int, ...]] = ()) -> None:
        super().__init__()
        self.vocabulary, self.weights = vocabulary, set(weights)
        self.largest: Seen | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in strided(result):
            if self.is_logits(tensor) and (self.largest is None or tensor.numel() > self.largest.elements):
                self.largest = Seen(tensor.numel(), tuple(tensor.shape), str(func))
        return result

    def is_logits(self, tensor: torch.Tensor) -> bool:
        shape = tuple(tensor.shape)
        return self.vocabulary in shape and shape not in self.weights


def strided(*values: Any) -> list[torch.Tensor]:
    """The ordinary tensors within nested containers."""
    leaves = tree_leaves(values)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.layout is torch.strided]


def weight_shapes(*models: torch.nn.Module) -> set[tuple[int, ...]]:
    """Shapes of the parameters of models, and of their transposes."""
    shapes = {tuple(p.shape) for model in models for p in model.parameters()}
    return shapes | {shape[::-1] for shape in shapes}
