"""Law 6: before the first update the policy is its reference, number for number, in every precision and adapter.

Policy and reference of the same rows go through the same kernels, so their log-probs are equal to the last bit. Where
the reference was scored in batches of other rows (remembered, computed ahead), kernels round otherwise: `BOUND`.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from strop.testing.cases import make_trainer, rows_for

METHODS = ("dpo", "kto", "bco", "ppo", "grpo", "rloo", "online-dpo", "nash-md", "xpo-online")
OFFLINE = METHODS[:3]  # their rows come again, so that reference scores are kept
PRECISIONS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": torch.float32},
    "bf16 autocast": {"dtype": torch.float32, "bf16": True},
    "bf16 weights": {"dtype": torch.bfloat16},
    "fp16 weights": {"dtype": torch.float16},
}
ADAPTERS: dict[str, dict[str, Any] | None] = {
    "full": None,
    "LoRA": {"target_modules": "all-linear"},
    "LoRA with biases": {"target_modules": "all-linear", "bias": "all"},
}
KEPT = ("", "cached", "precomputed")
BOUND = {"float32": 1e-5, "bf16 autocast": 0.05, "bf16 weights": 0.05, "fp16 weights": 0.01}  # nats, of any token
GRID = [cell for cell in itertools.product(METHODS, PRECISIONS, ADAPTERS, KEPT) if cell[0] in OFFLINE or not cell[3]]
SAMPLE = [
    (method, list(PRECISIONS)[i % 4], list(ADAPTERS)[i % 3], KEPT[i] if method in OFFLINE else "")
    for i, method in enumerate(METHODS)
]


def trainer_of(method: str, precision: str, adapter: str, folder: Path, **options: Any) -> Any:
    lora = ADAPTERS[adapter]
    given = {} if lora is None else {"peft_config": peft.LoraConfig(r=2, **lora)}
    if method not in OFFLINE:
        options |= {"beta": 0.1, "max_completion_length": 6}
    return make_trainer(
        method, folder, rows=rows_for(method, 4), arch="qwen2", trainer=given, **PRECISIONS[precision], **options
    )


def largest_distance(trainer: Any) -> float:
    """Of policy and reference, over all tokens of the first step, nats."""
    trainer.state.logging_steps = 1
    trainer.model.train()
    trees = trainer.prepare_step([trainer.train_dataset[i] for i in range(4)])
    apart = [0.0]
    for micro in trainer.micro_batches(trainer.model, trainer.make_work(trees), training=True):
        reference = trainer.reference_scores(micro.batch).logps
        assert micro.scores.logps.dtype == reference.dtype
        apart.append(float((micro.scores.logps.detach() - reference).abs().max()))
    assert len(apart) > 1
    return max(apart)


def hold(method: str, precision: str, adapter: str, kept: str, folder: Path) -> None:
    trainer = trainer_of(method, precision, adapter, folder)
    if kept == "cached":
        for row in range(4):  # in batches of their own
            trainer.reference_scores(trainer.build([trainer.train_dataset[row]]))
    elif kept == "precomputed":
        trainer.reference_scores.precompute(trainer.train_dataset, 3, trainer.build)
    assert largest_distance(trainer) <= (BOUND[precision] if kept else 0.0)


@pytest.mark.parametrize(("method", "precision", "adapter", "kept"), SAMPLE)
def test_the_first_step_begins_at_the_reference(
    method: str, precision: str, adapter: str, kept: str, tmp_path: Path
) -> None:
    hold(method, precision, adapter, kept, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_first_step_begins_at_the_reference(method: str, tmp_path: Path) -> None:
    for number, (own, *cell) in enumerate(GRID):
        if own == method:
            hold(own, *cell, tmp_path / str(number))
