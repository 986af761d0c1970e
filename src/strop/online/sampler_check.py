"""How far the rollout engine's log-probs are from the policy's own: seen before the first update, and at every step.

At the start of the first round engine and policy have the same weights. What differs there by no more than rounding is
said in a line, with the precision that brings it down: engine and trainer multiply matrices of other shapes, and 16
bits round each product. Log-probs that differ by more come from another distribution: padding that a model sees, a
cache that is wrong, a sampler with settings of its own. Every ratio, KL and correction would begin in the wrong place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from strop.engine.sharding import is_sharded
from strop.engine.step import token_field
from strop.losses import sampler_metrics
from strop.model import base_model, evaluating
from strop.online.groups import Group
from strop.online.pieces import trajectory_of
from strop.records import Batch, Extreme, Mean, Sampled, Want

if TYPE_CHECKING:
    from strop.online.trainer import OnlineTrainer

ROUNDING = {"half": 0.1, "wide": 1e-3}
"""Mean difference in nats a token that engines which round in other places may have, by precision."""
CLOSER = {
    "bfloat16": "fp16=True, where the model bears it, brings it down about eightfold, bf16=False to about 1e-5",
    "float16": "fp16=False brings it down to about 1e-5",
}
"""What closes the difference, by the 16 bits that mixed precision computes in."""


def compare_sampler(trainer: OnlineTrainer, groups: list[Group]) -> None:
    """A line that says how far the engine's log-probs of the first groups are from the policy's own, an alarm if that
    is no rounding; nothing for a policy in shards."""
    if is_sharded(trainer.accelerator):
        return
    trees = [
        piece
        for place, group in enumerate(groups)
        for tree in group.trees(Sampled(place, sampler_logps=group.sampler_logps))
        for piece in trainer.pieces(tree)
    ]
    batch = trainer.build(trainer.plan(trees, trainer.args.train_batch_size)[0])
    with torch.no_grad(), evaluating(trainer.policy), torch.random.fork_rng(devices=[]):
        own = trainer.score_with(trainer.policy, batch, Want.LOGPS, temperature=trainer.args.temperature).logps
    said, mixed = token_field(batch, "sampler_logps"), trainer.accelerator.mixed_precision
    weights = next(base_model(trainer.policy).parameters()).dtype
    computed = {"bf16": "bfloat16", "fp16": "float16"}.get(mixed, str(weights).removeprefix("torch."))
    differs, line = sampler_difference(own, said, engine=trainer.generator.name, computed=computed, mixed=mixed != "no")
    if differs:
        trainer.guard.alarms.sound("sampler_mismatch", trainer.state.global_step + 1, line)
    elif line:
        trainer.say(line)


def sampler_gap(logps: torch.Tensor, batch: Batch, **correction: Any) -> dict[str, Mean | Extreme]:
    """`sampler_metrics` of log-probs (N,) under the weights that sampled, or that learn from what older ones sampled;
    empty where the batch was not sampled."""
    if any(example.sampled is None or example.sampled.sampler_logps is None for example in batch.examples):
        return {}
    sampler_logps = token_field(batch, "sampler_logps").to(logps)
    return sampler_metrics(logps.detach(), sampler_logps, *trajectory_of(batch), **correction)


def sampler_difference(
    own: torch.Tensor, said: torch.Tensor, *, engine: str, computed: str, mixed: bool
) -> tuple[bool, str]:
    """Whether the two differ by more than rounding, and what to say of it; nothing where the engine gave no log-probs.

    Args:
        own, said: (T,) log-probs in nats, the policy's and the engine's; NaN where the engine gave none.
        engine: the engine's name.
        computed: "float32", "bfloat16", ...: what the policy computes in.
        mixed: whether that is mixed precision, and not the dtype of the weights.
    """
    gap = (own - said.to(own)).abs()
    gap = gap[~gap.isnan()]
    if not gap.numel():
        return False, ""
    mean, most = float(gap.mean()), float(gap.max())
    if mean > ROUNDING["half" if mixed or computed in CLOSER else "wide"]:
        return True, (
            f"before the first update the log-probs that {engine} reports for its samples differ from the policy's own "
            f"by {mean:.2g} nats a token, up to {most:.2g} nats: samples come from another distribution "
            "than the one that is trained. Try engine='transformers'; with an engine or rollout function of your own "
            "compare temperature, top-k, dtype and chat template."
        )
    line = (
        f"Sampler and trainer: before the first update the log-probs of {gap.numel()} tokens differ by "
        f"{mean:.1e} nats a token, up to {most:.1e} ({engine}, {computed})."
    )
    if computed not in CLOSER:
        return False, line
    wide = "model_init_kwargs={'dtype': 'float32'} brings it down to about 1e-5"
    return False, f"{line} That is rounding to 16 bits: {CLOSER[computed] if mixed else wide}."
