"""What the optimizer sees of a run, step by step, so that runs on the same rows cut differently can be compared.

The reduction law says that nothing here may depend on micro-batch size, accumulation or the number of processes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from strop.engine.sharding import whole
from strop.testing.cases import make_trainer, rows_for
from strop.testing.rollouts import fix_rollouts

UNEVEN = (
    "_runtime", "_per_second", "_time", "memory_peak", "eps", "total_flos", "epoch", "shared_tokens",
    "prefilled_tokens",
)  # fmt: skip
"""Ends of logged keys that measure time, or the cut itself and what meets in a micro-batch by it."""
MAX_NORM = 0.05
"""Below the gradient norm of every case, so that clipping acts."""
ROWS_PER_STEP = 8
Run = tuple[str, dict[str, Any]]
"""A verb of `strop.testing.cases.CASES`, and settings."""


@dataclass
class Steps:
    """A run as the optimizer saw it: clipped gradients, their norm before clipping, the metrics, and the weights
    left."""

    gradients: list[dict[str, torch.Tensor]] = field(default_factory=list)
    metrics: list[dict[str, float]] = field(default_factory=list)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)


class Recorder(TrainerCallback):
    """Keeps the gradients that reach the optimizer, and what is logged."""

    def __init__(self, trainer: Any) -> None:
        self.trainer, self.steps = trainer, Steps()

    def parameters(self) -> list[tuple[str, torch.nn.Parameter]]:
        return list(self.trainer.accelerator.unwrap_model(self.trainer.model).named_parameters())

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps.gradients.append(
            {n: whole(p.grad).detach().clone() for n, p in self.parameters() if p.grad is not None}
        )

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, float] | None = None, **kwargs: Any
    ) -> None:
        if logs and "train_runtime" not in logs:
            self.steps.metrics.append({k: float(v) for k, v in logs.items() if not k.endswith(UNEVEN)})

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps.weights = {name: whole(p).detach().clone() for name, p in self.parameters()}


def record_run(verb: str, folder: Path | str, per_device: int, accumulation: int, **overrides: Any) -> Steps:
    """Train one epoch with shuffled rows, a full step and a short one of a single row, and record every step.

    Args:
        verb: one of `strop.testing.cases.CASES`.
        per_device, accumulation: with the number of processes they make `ROWS_PER_STEP` rows (or completions).
    """
    group = {"num_generations": 2} if verb in ("grpo", "rloo", "online-dpo") else {}
    settings = {
        "per_device_train_batch_size": per_device,
        "gradient_accumulation_steps": accumulation,
        "max_grad_norm": MAX_NORM,
        "learning_rate": 1e-2,
        "optim": "sgd",
        **({"ddp_backend": "gloo"} if "WORLD_SIZE" in os.environ else {}),
        **group,
        **overrides,
    }
    extra = settings.pop("trainer", None)
    trainer = fix_rollouts(
        make_trainer(verb, folder, rows=rows_for(verb, ROWS_PER_STEP + 1), trainer=extra, **settings)
    )
    recorder = Recorder(trainer)
    trainer.add_callback(recorder)
    trainer.train()
    return recorder.steps


def record_runs(runs: Sequence[Run], folder: str, per_device: int, accumulation: int) -> list[Steps]:
    """`record_run` for several cases in one process: what a rank of a test session does."""
    return [
        record_run(verb, f"{folder}/{i}", per_device, accumulation, **options) for i, (verb, options) in enumerate(runs)
    ]


def differences(first: Steps, second: Steps) -> dict[str, float]:
    """Greatest absolute difference of gradients, weights and each metric; infinite where one has what the other
    lacks."""
    found = {"steps": float(abs(len(first.gradients) - len(second.gradients)))}
    pairs = [*zip(first.gradients, second.gradients, strict=False), (first.weights, second.weights)]
    for a, b in pairs:
        found["tensors"] = max(found.get("tensors", 0.0), _largest(a, b))
    for one, other in zip(first.metrics, second.metrics, strict=False):
        for name in one.keys() | other.keys():
            gap = abs(one.get(name, float("inf")) - other.get(name, float("inf")))
            scale = max(1.0, abs(one.get(name, 1.0)))
            found[name] = max(found.get(name, 0.0), gap / scale if gap == gap else 0.0)
    return found


def _largest(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> float:
    if first.keys() != second.keys():
        return float("inf")
    return max((float((first[name] - second[name]).abs().max()) for name in first), default=float("inf"))
