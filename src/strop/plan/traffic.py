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
from strop.plan.memory import Load, parts_of, tokens_of

ID_BYTES, LOGP_BYTES, GRADIENT_BYTES, HALF_BYTES = 4, 8, 4, 2


def traffic(method: str, shape: Shape, load: Load) -> dict[str, int]:
    """Bytes of one optimizer step, name -> bytes: of gradients for each training device, of weights for each sampler,
    of ids and log-probs for all devices together. Empty where nothing is sent. What is given is as of `plan`.
    """
    own = parts_of(method)
    found = {}
    if load.devices > 1:
        found["gradients, each device"] = exchanged(shape, load)
    if own.samples:
        tokens, scored = tokens_of(own, load)
        steps = load.micro_batches * load.devices
        found["weights, each sampler"] = GRADIENT_BYTES * load.trained(shape)
        found["ids, all samplers"] = ID_BYTES * tokens * steps
        found["log-probs, all samplers"] = LOGP_BYTES * scored * steps
    return found


def exchanged(shape: Shape, load: Load) -> int:
    """Bytes that a training device sends in a step, by a ring."""
    trained = load.trained(shape)
    if load.engine in ("fsdp", "zero3"):
        amount = load.micro_batches * (2 * HALF_BYTES * shape.parameters + GRADIENT_BYTES * trained)
    elif load.engine in ("zero1", "zero2"):
        amount = (GRADIENT_BYTES + HALF_BYTES) * trained
    else:
        amount = 2 * GRADIENT_BYTES * trained
    return amount * (load.devices - 1) // load.devices
