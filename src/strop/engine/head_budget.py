"""How many bytes of logits may live at once in a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from strop.model.head_memory import default_head_bytes
from strop.model.shards import local_part

if TYPE_CHECKING:
    from strop.engine.step_trainer import StepTrainer

GRADIENT_BYTES, STATE_BYTES = 4, 8
"""Of each trained weight: its gradient, and two moments of AdamW."""


def bytes_of_logits(trainer: StepTrainer) -> int:
    """`head_memory_mb` as it was given; where it is None, a share of what the device has free.

    The share is taken once, at the first batch that is scored, and stays for the trainer's life.
    """
    asked = trainer.args.head_memory_mb
    if asked is not None:
        return int(asked * 2**20)
    if trainer.chosen_head_bytes is None:
        trainer.chosen_head_bytes = default_head_bytes(trainer.args.device, still_to_come(trainer))
    return trainer.chosen_head_bytes


def still_to_come(trainer: StepTrainer) -> int:
    """Bytes that gradients and the optimizer's state will take on this device, and do not take yet."""
    trained = sum(local_part(p).numel() for p in trainer.policy.parameters() if p.requires_grad)
    state = getattr(getattr(trainer, "optimizer", None), "state", None)
    return trained * (GRADIENT_BYTES + (0 if state else STATE_BYTES))
