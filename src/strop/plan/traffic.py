"""What an optimizer step sends, and to whom: bytes by formula, for the network of a cluster.

With P weights of which T are trained, N training devices, M micro-batches and C tokens of completions per device:

    gradients    ddp     2 (N-1)/N 4 T                     a ring's reduce-scatter and all-gather, float32
                 zero1, zero2    (N-1)/N (4 T + 2 T)       gradients out, bfloat16 weights back
                 fsdp, zero3     M (N-1)/N (2 * 2 P + 4 T) weights gathered forward and backward, gradients out
    weights      4 T to each sampler that has a copy of the policy (Ray, vLLM), once a round
    ids          4 bytes for each token of prompts and completions
    log-probs    8 bytes for each token of the completions, back from the samplers
"""

from __future__ import annotations

from strop.plan.activations import Shape
from strop.plan.memory import Engine, Load, Training, parts_of, tokens_of

ID_BYTES, LOGP_BYTES, GRADIENT_BYTES, HALF_BYTES = 4, 8, 4, 2


def traffic(
    method: str,
    shape: Shape,
    load: Load,
    *,
    training: Training = "full",
    lora_rank: int = 16,
    engine: Engine = "single",
    devices: int = 1,
) -> dict[str, int]:
    """Bytes of one optimizer step, name -> bytes: of gradients for each training device, of weights for each sampler,
    of ids and log-probs for all devices together. Empty where nothing is sent.

    Args:
        method: a verb of the registry.
        shape, load, training, lora_rank, engine, devices: as of `plan`.
    """
    own = parts_of(method)
    trained = shape.parameters if training == "full" else lora_rank * shape.per_rank
    found = {}
    if devices > 1:
        found["gradients, each device"] = exchanged(shape, trained, load.micro_batches, engine, devices)
    if own.samples:
        tokens, scored = tokens_of(own, load)
        steps = load.micro_batches * devices
        found["weights, each sampler"] = GRADIENT_BYTES * trained
        found["ids, all samplers"] = ID_BYTES * tokens * steps
        found["log-probs, all samplers"] = LOGP_BYTES * scored * steps
    return found


def exchanged(shape: Shape, trained: int, micro_batches: int, engine: Engine, devices: int) -> int:
    """Bytes that a training device sends in a step, by a ring."""
    if engine in ("fsdp", "zero3"):
        amount = micro_batches * (2 * HALF_BYTES * shape.parameters + GRADIENT_BYTES * trained)
    elif engine in ("zero1", "zero2"):
        amount = (GRADIENT_BYTES + HALF_BYTES) * trained
    else:
        amount = 2 * GRADIENT_BYTES * trained
    return amount * (devices - 1) // devices
