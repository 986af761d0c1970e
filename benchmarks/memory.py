"""The memory table of a 7B model, method by method, from its shape alone: writes docs/memory.md.

    python -m benchmarks.memory

The plan itself is held to measured peaks, storage by storage, in tests/plan/test_memory.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig

from strop.methods.registry import METHODS
from strop.plan.activations import Shape, shape_of
from strop.plan.memory import Load, Training, plan

SEVEN = LlamaConfig(
    hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, vocab_size=32000
)
RANK = 16
KINDS: tuple[tuple[Training, str], ...] = (("full", "full"), ("lora", "LoRA"), ("4bit", "4-bit LoRA"))
LOAD: dict[str, Any] = {"rows": 1, "prompt": 512, "completion": 512, "slots": 8, "checkpointing": True}
GB = 10**9
PAGE = Path(__file__).resolve().parents[1] / "docs" / "memory.md"
HEAD = """# Memory

`strop plan METHOD --model CONFIG --gpus 1x24GB` counts the bytes of a run before a weight is read: the model of the
config is built on torch's meta device, and every tensor that its forward pass keeps for the backward is counted once.
So the count follows the architecture, and no formula per model is needed. `tests/plan/test_memory.py` holds it to
within 15 % of what forward and backward really allocate, storage by storage. Models with capped attention logits
(Gemma 2) are outside of that bound: their attention keeps terms that grow with the square of a row.

## A 7B model

Llama-2 7B's shape, bfloat16, one card, one row of 512 + 512 tokens a micro-batch, gradient checkpointing, AdamW, 8
completions sampled at a time. In GB at the peak. A reward model of the same size counts where a method needs one.

| method | full | LoRA | 4-bit LoRA |
|---|---|---|---|
"""
TAIL = f"""
LoRA is of rank {RANK} on every linear layer. Full training keeps float32 masters, their gradients and two moments: 16
bytes a weight, and 2 more for the bfloat16 copy within a step. Tables that count 2 bytes a weight and a model ("SFT 14
GB, DPO 28 GB") leave out gradients and optimizer, which are several times as much: without sharding no method trains
7B in full on a card of 80 GB. With an adapter the reference costs nothing: it is the same model with the adapter off.
PPO with adapters holds the frozen weights twice, policy and critic, not four times; a reward model of the same size
comes on top wherever one scores.

Several cards: `--gpus 8x80GB --engine fsdp` (or zero1, zero2, zero3, ddp).
"""


def row(verb: str, shapes: dict[Training, Shape]) -> str:
    own = {**LOAD, "lora_rank": RANK, "reward": shapes["full"]}
    cells = [plan(verb, shapes[kind], Load(training=kind, **own)).peak / GB for kind, _ in KINDS]
    return f"| {verb} | " + " | ".join(f"{value:.0f}" for value in cells) + " |\n"


def main() -> None:
    full = shape_of(SEVEN, torch.bfloat16)
    adapted = shape_of(SEVEN, torch.bfloat16, lora_rank=RANK)
    shapes: dict[Training, Shape] = {"full": full, "lora": adapted, "4bit": adapted}
    PAGE.write_text(HEAD + "".join(row(method.verb, shapes) for method in METHODS) + TAIL, encoding="utf-8")
    print(f"written to docs/{PAGE.name}")


if __name__ == "__main__":
    main()
