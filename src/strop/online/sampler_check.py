"""Whether what the rollout engine says of its samples is what the policy says of them, seen before the first update.

At the start of the first round engine and policy have the same weights. Log-probs that differ there by more than
rounding come from another distribution: padding that a model sees, a cache that is wrong, a sampler with settings of
its own. Every ratio, KL and correction would begin in the wrong place.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate.utils import DistributedType

from strop.engine.step import token_field
from strop.model import base_model, evaluating
from strop.online.groups import Group
from strop.records import Sampled, Want

ROUNDING = {"half": 0.1, "wide": 1e-3}
"""Mean difference in nats a token that engines which round in other places may have, by precision."""


def compare_sampler(trainer: Any, groups: list[Group]) -> None:
    """Sound an alarm if log-probs of the first groups differ from the policy's own by more than rounding.

    Not for a sharded model, which all ranks must run together.
    """
    if trainer.accelerator.distributed_type in (DistributedType.DEEPSPEED, DistributedType.FSDP):
        return
    trees = [
        piece
        for place, group in enumerate(groups)
        for tree in group.trees(Sampled(place, sampler_logps=group.sampler_logps))
        for piece in trainer.pieces(tree)
    ]
    part = trainer.plan(trees, trainer.args.train_batch_size)[0]
    batch = trainer.build(part)
    policy = trainer.policy
    with torch.no_grad(), evaluating(policy), torch.random.fork_rng(devices=[]):
        own = trainer.score_with(policy, batch, Want.LOGPS, temperature=trainer.args.temperature).logps
    gap = (own - token_field(batch, "sampler_logps").to(own)).abs()
    gap = gap[~gap.isnan()]  # tokens that the engine gave no log-prob
    half = trainer.accelerator.mixed_precision != "no" or next(base_model(policy).parameters()).dtype.itemsize < 4
    if gap.numel() and not float(gap.mean()) <= ROUNDING["half" if half else "wide"]:
        trainer.guard.alarms.sound(
            "sampler_mismatch",
            trainer.state.global_step + 1,
            f"before the first update the log-probs that {trainer.generator.name} reports for its samples differ from "
            f"the policy's own by {float(gap.mean()):.2g} nats a token, up to {float(gap.max()):.2g}: samples come "
            "from another distribution than the one that is trained. Try engine='transformers'; with an engine or "
            "rollout function of your own compare temperature, top-k, dtype and chat template.",
        )
