"""Will it fit: the bytes of a run by part, per device, from a model's config alone.

    resident  = weights + optimizer + reference + teacher + critic + reward model
    step      = activations + logits + gradients          (what forward and backward add)
    sampling  = cache of keys and values + logits of the slots
    peak      = resident + max(step, sampling)

Within one micro-batch the gradients grow while activations are freed, so both are not at their greatest together;
with several micro-batches the gradients of the earlier ones stay. `docs/memory.md` holds measured peaks beside it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from strop.errors import ConfigError
from strop.methods.registry import BY_VERB
from strop.model.head_memory import LEAST, share_of
from strop.online.trainer import OnlineTrainer
from strop.plan.activations import Shape

Engine = Literal["single", "ddp", "fsdp", "zero1", "zero2", "zero3"]
Training = Literal["full", "lora", "4bit"]

ADAM_BYTES = 8
"""Two float32 moments of every trained weight."""
FOUR_BIT_BYTES = 0.516
"""A 4-bit weight with its doubly quantised scales: 4.127 bits."""


@dataclass(frozen=True)
class Parts:
    """What a method computes and keeps, from what its trainer declares.

    Attributes:
        completions: those of a tree in one forward pass; 0: a group of generations.
        logits: whether it has a language-model head to learn through.
        samples: whether completions are sampled.
        compares: whether it has a reference, by its default settings.
        models: arguments of its constructor, further models among them.
    """

    completions: int
    logits: bool
    samples: bool
    compares: bool
    models: frozenset[str]


@functools.cache
def parts_of(verb: str) -> Parts:
    """What the method of a verb computes and keeps."""
    method = BY_VERB[verb]
    trainer, config = method.trainer(), method.config()
    defaults = config.__new__(config)  # as declared: to make a whole one resets the state of a run that is going on
    return Parts(
        completions=trainer.tree_completions,
        logits=trainer.task == "causal",
        samples=issubclass(trainer, OnlineTrainer),
        compares=trainer.facts(defaults, {}).uses_reference,
        models=frozenset(inspect.signature(trainer.__init__).parameters),
    )


@dataclass(frozen=True)
class Load:
    """What a run asks of the memory.

    Attributes:
        training: all weights, a LoRA adapter on every linear layer, or the same on a 4-bit base.
        engine: how weights are shared out over `devices`; "single" and "ddp" hold everything on each.
        rows: trees of a micro-batch: per_device_train_batch_size (for group methods, completions).
        prompt, completion: tokens of each, the longest that may come.
        micro_batches: gradient_accumulation_steps.
        generations: completions of a prompt that share it in a tree (group methods).
        slots: completions that are sampled at a time.
        head_bytes: bytes that logits may take (head_memory_mb); None: what a trainer takes on this card.
        card: bytes of the card, or None.
        half: the model computes in bfloat16; full training then keeps float32 masters.
        checkpointing: only the input of each layer is kept, and one layer at a time computed again.
        offloading: what is kept waits in host memory; on the device is at most one layer's at a time.
        reference: the method compares with a reference (GRPO: beta above 0).
        teacher: the shape of GKD's teacher; None: the policy's.
        reward: the shape of a reward model, if there is one.
    """

    training: Training = "full"
    lora_rank: int = 16
    engine: Engine = "single"
    devices: int = 1
    rows: int = 8
    prompt: int = 512
    completion: int = 512
    micro_batches: int = 1
    generations: int = 8
    slots: int = 32
    head_bytes: int | None = None
    card: int | None = None
    half: bool = True
    checkpointing: bool = False
    offloading: bool = False
    reference: bool | None = None
    teacher: Shape | None = None
    reward: Shape | None = None

    @property
    def width(self) -> int:
        """Bytes of a number that is computed with."""
        return 2 if self.half else 4

    def trained(self, shape: Shape) -> int:
        """Elements that are trained."""
        return shape.parameters if self.training == "full" else self.lora_rank * shape.per_rank


@dataclass(frozen=True)
class Plan:
    """Bytes of a run on one device, by part.

    Attributes:
        parts: name -> bytes; what is resident first, then what a step adds, then what sampling adds.
        peak: the most at one time, which is less than the sum of the parts.
    """

    parts: Mapping[str, int] = field(default_factory=dict)
    peak: int = 0


def plan(method: str, shape: Shape, load: Load) -> Plan:
    """Memory of one device while a method trains.

    Args:
        method: a verb of the registry, "dpo".
        shape: `shape_of(config, dtype, lora_rank=...)` in the dtype that is computed in, with the rank of an adapter
            where one is trained.

    Raises:
        ConfigError: more than one device without an engine that uses them.
    """
    if load.devices > 1 and load.engine == "single":
        raise ConfigError(f"devices={load.devices} need an engine: ddp, fsdp, zero1, zero2 or zero3.")
    own, share, trained = parts_of(method), sharded(load), load.trained(shape)
    parts = {
        "weights": int(weight_bytes(shape, load) / share["weights"]),
        "optimizer": int(trained * ADAM_BYTES / share["optimizer"]),
        **other_models(own, shape, load, share["weights"]),
    }
    resident = sum(parts.values())
    gradients = int(trained * 4 / share["gradients"])
    tokens, scored = tokens_of(own, load)
    activations, again = activation_bytes(own, shape, load, tokens)
    logits = min(scored * shape.vocabulary * 4, logit_bytes(load, resident + gradients)) if own.logits else 0
    first = int(min(4 * shape.embedding, gradients)) if load.training == "full" else 0
    if load.engine == "ddp":
        gradients *= 2  # the buckets that are exchanged
    if load.micro_batches > 1:
        step = gradients + activations + logits + again
    else:
        last = max(gradients, gradients - first + activations // max(1, shape.layers))  # the embedding's come last
        step = max(activations + logits + first, last) + again
    gathered = gathered_bytes(shape, load)
    sampling = sampling_bytes(shape, load) if own.samples else 0
    parts |= {"gradients": gradients, "activations": activations + again, "logits": logits}
    parts |= {name: value for name, value in (("gathered layers", gathered), ("sampling", sampling)) if value}
    return Plan(parts, resident + gathered + max(step, sampling))


def sharded(load: Load) -> dict[str, int]:
    """By how much each part is divided."""
    whole = {"weights": 1, "gradients": 1, "optimizer": 1}
    split = {
        "zero1": ("optimizer",),
        "zero2": ("optimizer", "gradients"),
        "zero3": ("optimizer", "gradients", "weights"),
        "fsdp": ("optimizer", "gradients", "weights"),
    }
    return whole | dict.fromkeys(split.get(load.engine, ()), load.devices)


def weight_bytes(shape: Shape, load: Load) -> float:
    """The policy's weights as they lie in memory, an adapter among them."""
    if load.training == "full":
        return shape.parameters * (4 + 2 * load.half)  # masters, and their copies in bfloat16 within a step
    base = float(shape.parameters * load.width)
    if load.training == "4bit":
        base = shape.linear * FOUR_BIT_BYTES + (shape.parameters - shape.linear) * load.width
    return base + 4 * load.trained(shape)


def other_models(own: Parts, shape: Shape, load: Load, share: int) -> dict[str, int]:
    """Models beside the policy: a reference is a copy in full training, and the adapter switched off else."""
    parts: dict[str, int] = {}
    compares = own.compares if load.reference is None else load.reference
    if compares and load.training == "full":
        parts["reference"] = shape.parameters * 4 // share  # a copy of the masters
    if "teacher_model" in own.models:
        parts["teacher"] = (load.teacher or shape).parameters * load.width // share
    if "reward_funcs" in own.models and load.reward is not None:
        parts["reward model"] = load.reward.parameters * load.width
    if "value_model" in own.models:
        parts["critic"] = int((weight_bytes(shape, load) + load.trained(shape) * (ADAM_BYTES + 4)) / share)
    return parts


def logit_bytes(load: Load, taken: int) -> int:
    """Bytes that logits may take beside what is there for good, as `head_bytes` of a trainer has it in a run."""
    if load.head_bytes is not None:
        return load.head_bytes
    return LEAST if load.card is None else share_of(load.card - taken)


def tokens_of(own: Parts, load: Load) -> tuple[int, int]:
    """Tokens computed in a micro-batch, each prompt once, and how many of them are scored."""
    each = own.completions or max(1, min(load.generations, load.rows))
    trees = load.rows if own.completions else -(-load.rows // each)  # rows of group methods count completions
    scored = (trees * each if own.completions else load.rows) * load.completion
    return trees * load.prompt + scored, scored


def activation_bytes(own: Parts, shape: Shape, load: Load, tokens: int) -> tuple[int, int]:
    """What is kept from forward to backward, and what a layer that is computed again needs on top."""
    whole = shape.saved_token * tokens + shape.saved_square * tokens * (load.prompt + load.completion)
    critics = 2 if "value_model" in own.models else 1
    if load.offloading:  # at most: of the layer in work only a part is there at once
        return int(critics * whole / shape.layers), 0
    if load.checkpointing:
        return int(critics * shape.input_token * tokens), int(whole / shape.layers)
    return int(critics * whole), 0


def gathered_bytes(shape: Shape, load: Load) -> int:
    """Layers that are whole on a device while they are computed: the one in work and the next."""
    if load.engine not in ("fsdp", "zero3") or load.devices == 1:
        return 0
    layer = (shape.parameters - shape.embedding) / shape.layers
    return int((2 * layer + shape.embedding) * load.width)


def sampling_bytes(shape: Shape, load: Load) -> int:
    """Keys and values of all slots at full length, and the logits of one token of each."""
    return load.slots * ((load.prompt + load.completion) * shape.cache_token * load.width + 4 * shape.vocabulary)
