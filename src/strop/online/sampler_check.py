"""Whether what the rollout engine says of its samples is what the policy says of them, seen before the first update.

At the start of the first round engine and policy have the same weights. Log-probs that differ there by more than
rounding come from another distribution: padding that a model sees, a cache that is wrong, a sampler with settings of
its own. Every ratio, KL and correction would begin in the wrong place.
"""

from __future__ import annotations

import torch

ROUNDING = {"half": 0.1, "wide": 1e-3}
"""Mean difference in nats a token that engines which round in other places may have, by precision."""


def sampler_mismatch(own: torch.Tensor, said: torch.Tensor, *, half: bool, engine: str) -> str:
    """What to say where the two differ by more than rounding; empty if they do not.

    Args:
        own, said: (T,) log-probs in nats, the policy's and the engine's; NaN where the engine gave none.
        half: whether the policy computes in 16 bits.
        engine: the engine's name.
    """
    gap = (own - said.to(own)).abs()
    gap = gap[~gap.isnan()]
    if not gap.numel() or float(gap.mean()) <= ROUNDING["half" if half else "wide"]:
        return ""
    return (
        f"before the first update the log-probs that {engine} reports for its samples differ from the policy's own by "
        f"{float(gap.mean()):.2g} nats a token, up to {float(gap.max()):.2g}: samples come from another distribution "
        "than the one that is trained. Try engine='transformers'; with an engine or rollout function of your own "
        "compare temperature, top-k, dtype and chat template."
    )
