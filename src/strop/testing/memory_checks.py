"""Checks of what a step holds in memory."""

from __future__ import annotations

from strop.model import base_model
from strop.model.forward import vocab_size
from strop.testing.live_tensors import LiveTensors, weight_shapes
from strop.testing.subject import NotApplicable, Subject, examples_of

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
    models = [trainer.model, *(model for name in ("teacher",) if (model := getattr(trainer, name, None)) is not None)]
    with LiveTensors(vocabulary, weight_shapes(*models)) as live:
        work = trainer.make_work(trainer.prepare_step(examples_of(trainer)))
        trainer.training_step(trainer.model, work)
    tokens = int(work.counts["tokens"])
    if tokens < 3 * ROWS_AT_ONCE:
        raise NotApplicable(f"{tokens} scored tokens are too few to tell a part of them from all")
    assert live.largest is None or live.largest.elements < tokens * vocabulary, (
        f"{live.largest.operation} made a tensor {live.largest.shape} of logits, all of the {tokens} scored tokens at "
        "once; score them with Want.LOGPS, or work on the hidden states in chunks"
    )
