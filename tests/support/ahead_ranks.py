"""A run that samples ahead on one of several ranks, with completions that depend on prompt and version alone."""

from __future__ import annotations

import os
from typing import Any

import torch

from strop.testing.cases import make_trainer, rows_for
from strop.testing.rollouts import FixedGenerator
from tests.support.geometry import UNEVEN


class Versioned(FixedGenerator):
    """Writes other completions with every version of the weights that it is handed."""

    def __init__(self, trainer: Any) -> None:
        super().__init__(len(trainer.processing_class), trainer.processing_class.eos_token_id)
        self.trainer, self.version = trainer, -1

    def stage(self, model: Any) -> Any:
        version = self.trainer.state.global_step
        return lambda: setattr(self, "version", version)

    def _completion(self, key: str) -> tuple[list[int], str]:
        return super()._completion(f"{key} {self.version}")


def learned(folder: str, per_device: int) -> dict[str, dict[str, Any]]:
    """A window ahead, on an epoch of two steps and a short one, and again: what is logged, and the weights."""
    return {verb: learned_by(verb, f"{folder}/{verb}", per_device) for verb in ("grpo", "rloo")}


def learned_by(verb: str, folder: str, per_device: int) -> dict[str, Any]:
    trainer = make_trainer(
        verb, f"{folder}/{os.environ.get('RANK', 'alone')}", rows=rows_for(verb, 5), dtype=torch.float64,
        num_generations=2, per_device_train_batch_size=per_device, max_staleness=1, max_steps=5, beta=0.0,
        optim="sgd", learning_rate=1e-2, max_completion_length=8,
        **({"ddp_backend": "gloo"} if "WORLD_SIZE" in os.environ else {}),
    )  # fmt: skip
    trainer._generator, trainer._sampler_compared = Versioned(trainer), True
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    logs = [{name: value for name, value in line.items() if not name.endswith(UNEVEN)} for line in lines]
    policy = trainer.accelerator.unwrap_model(trainer.model)
    return {"logs": logs, "weights": torch.cat([p.detach().flatten() for p in policy.parameters()])}
