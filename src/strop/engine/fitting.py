"""What a run does where the longest rows do not fit: it computes layers again, if nobody said whether it may.

`gradient_checkpointing` left out means: where memory asks for it. The rehearsal measures that, before the first step,
with the rows that are the longest; a plan would have to guess the allocator. What was set is kept, either way.
"""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import torch

from strop.engine.fast_layers import language_models
from strop.engine.rehearsal import Rehearsed, rehearse
from strop.errors import SetupError
from strop.model import base_model, is_peft
from strop.model.virtual_tokens import has_virtual_tokens

if TYPE_CHECKING:
    from strop.engine.trainer import BaseTrainer

CHECKPOINTED = (
    "  memory     the longest rows do not fit: layers are computed again in the backward pass, which takes about a "
    "third more time (gradient_checkpointing=False to have it refused instead)"
)


def fitted(trainer: BaseTrainer) -> Rehearsed:
    """A rehearsal; where it does not fit, once more with checkpointing, if that was left open.

    Raises:
        SetupError: it does not fit so either, with what would help.
    """
    found = tried(trainer)
    if found is None and may_checkpoint(trainer):
        trainer.say(CHECKPOINTED)
        checkpoint_layers(trainer)
        found = tried(trainer)
    if found is None:
        raise SetupError(advice(trainer))
    return found


def tried(trainer: BaseTrainer) -> Rehearsed | None:
    """A rehearsal, or None where the device's memory does not hold it; nothing of it is left then."""
    try:
        return rehearse(trainer)
    except torch.OutOfMemoryError:
        pass  # the error holds the frames, and they hold the tensors
    trainer.model_wrapped.zero_grad(set_to_none=True)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def may_checkpoint(trainer: BaseTrainer) -> bool:
    """Whether nobody said, the model can, and one process decides alone: ranks that differ would wait for another."""
    models = language_models(trainer.policy)
    able = all(getattr(base_model(model), "supports_gradient_checkpointing", False) for model in models)
    alone = trainer.args.world_size == 1
    return trainer.args.checkpointing_open and alone and able and not has_virtual_tokens(trainer.policy)


def checkpoint_layers(trainer: BaseTrainer) -> None:
    """Switch checkpointing on, as the parent does where it is set before training."""
    trainer.args.checkpointing_open = False
    trainer.args.gradient_checkpointing = trainer.args.activation_checkpointing = True
    if is_peft(trainer.policy):
        trainer.policy.enable_input_require_grads()
    model: Any = trainer.model
    enable = getattr(model, "activation_checkpointing_enable", None)  # absent in older transformers
    (enable or model.gradient_checkpointing_enable)()


def advice(trainer: BaseTrainer) -> str:
    """What does not fit, and what would help, in the order of what it costs."""
    args = trainer.args
    remedies = {
        f"per_device_train_batch_size=1 (now {args.train_batch_size}), or max_tokens_per_micro_batch; either way the "
        "gradient stays what it is": args.train_batch_size > 1,
        "gradient_checkpointing=True": not args.gradient_checkpointing,
        "activation_offloading=True": not args.activation_offloading,
        "an adapter (peft_config), on a 4-bit model if need be": not is_peft(trainer.policy),
        "a smaller max_length": True,
    }
    helps = "; ".join(text for text, open_yet in remedies.items() if open_yet)
    return (
        f"The longest rows known do not fit into the memory of {args.device}. Set, from what costs least: {helps}. "
        "`strop plan` says what each of them takes, and docs/gpu.md what is measured."
    )
