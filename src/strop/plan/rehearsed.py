"""What the memory plan says of a run that is about to begin, to stand beside what its rehearsal took."""

from __future__ import annotations

import torch

from strop.engine.rehearsal import Rehearsed
from strop.engine.trainer import BaseTrainer
from strop.model import base_model
from strop.plan.activations import shape_of
from strop.plan.memory import Load, plan


def planned_bytes(verb: str, trainer: BaseTrainer, found: Rehearsed) -> int:
    """What the plan of a verb says of the rows of a rehearsal; 0 where it cannot read the model."""
    args, model = trainer.args, base_model(trainer.policy)
    peft = getattr(trainer.policy, "peft_config", None)
    rank = getattr(next(iter(peft.values())), "r", None) if peft else None
    half = args.bf16 or args.fp16
    load = Load(
        training="lora" if peft else "full",
        lora_rank=rank or 16,
        rows=args.train_batch_size,
        prompt=max(len(tree.prompt_ids) for tree in found.trees),
        completion=max(len(each) for tree in found.trees for each in tree.completions),
        micro_batches=2,
        generations=getattr(args, "num_generations", 1),
        head_bytes=trainer.head_bytes,
        half=half,
        checkpointing=args.gradient_checkpointing,
        offloading=args.activation_offloading,
        reference=trainer.reference is not None,
    )
    try:
        shape = shape_of(model.config, torch.bfloat16 if half else torch.float32, lora_rank=rank)
        return plan(verb, shape, load).peak
    except (AttributeError, TypeError, ValueError):  # a model of the user's own
        return 0
