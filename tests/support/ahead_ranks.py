"""A run that samples ahead on one of several ranks, with completions that depend on prompt and version alone."""

from __future__ import annotations

import os
from typing import Any

import torch

from strop.testing.cases import make_trainer, rows_for
from strop.testing.rollouts import FixedGenerator
from tests.support.geometry import UNEVEN

IN_GROUPS: dict[str, Any] = {"num_generations": 2}
OWN: dict[str, dict[str, Any]] = {
    "grpo": IN_GROUPS,
    "rloo": IN_GROUPS,
    "ppo": {**IN_GROUPS, "num_iterations": 1, "beta": 0.1},
    "online-dpo": {**IN_GROUPS, "beta": 0.1},
    "xpo-online": {"beta": 0.1, "alpha": 0.01},
    "gkd": {"lmbda": 0.5, "beta": 0.5},
}
"""Case -> its settings; the first three count completions, and the others prompts."""


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


def learned(folder: str, prompts: int, resumed: tuple[str, ...] = ()) -> dict[str, dict[str, Any]]:
    """A window ahead, on an epoch of two steps and a short one, and again: what is logged, and the weights; of cases
    that are `resumed`, the weights of a run that went on from the second step, too.

    `prompts` of a step are this rank's.
    """
    found = {case: learned_by(case, f"{folder}/{case}", prompts) for case in OWN}
    for case in resumed:
        saving = {"save_strategy": "steps", "save_steps": 2}
        whole = learned_by(case, f"{folder}/{case} saved", prompts, **saving)
        torch.distributed.barrier()
        again = learned_by(case, f"{folder}/{case} saved", prompts, resume="checkpoint-2", **saving)
        found[case] |= {"whole": whole["weights"], "again": again["weights"]}
    return found


def learned_by(case: str, folder: str, prompts: int, resume: str | None = None, **settings: Any) -> dict[str, Any]:
    each = 2 if case in ("grpo", "rloo", "ppo") else 1
    defaults = {"beta": 0.0, "max_staleness": 1, "max_steps": 5, "optim": "sgd", "learning_rate": 1e-2}
    trainer = make_trainer(
        case, folder, rows=rows_for(case, 5), dtype=torch.float64, per_device_train_batch_size=each * prompts,
        max_completion_length=8, **{**defaults, **OWN[case], **settings},
        **({"ddp_backend": "gloo"} if "WORLD_SIZE" in os.environ else {}),
    )  # fmt: skip
    trainer._generator, trainer._sampler_compared = Versioned(trainer), True
    trainer.train(resume_from_checkpoint=f"{folder}/{resume}" if resume else None)
    lines = [line for line in trainer.state.log_history if "loss" in line]
    logs = [{name: value for name, value in line.items() if not name.endswith(UNEVEN)} for line in lines]
    policy = trainer.accelerator.unwrap_model(trainer.model)
    return {"logs": logs, "weights": torch.cat([p.detach().flatten() for p in policy.parameters()])}
