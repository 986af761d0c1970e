"""What a user's rollout function is given for its trainer while the policy learns."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from strop.errors import RolloutError

if TYPE_CHECKING:
    from strop.online.trainer import OnlineTrainer

MOVING = ("model", "model_wrapped", "policy", "sampled_model", "optimizer", "lr_scheduler")
"""What the training thread changes meanwhile."""


class TrainerMeanwhile:
    """Stands for a trainer in the thread that samples: all of it but what learning changes at the same time.

    `generator` samples with the weights that the round was begun with, and `state` is as it was then.

    Args:
        trainer: the run's.
        generator: its engine, for this round.
    """

    def __init__(self, trainer: OnlineTrainer, generator: Any) -> None:
        self._trainer, self.generator = trainer, generator
        self.state = copy.copy(trainer.state)
        self.state.log_history = list(self.state.log_history)

    def __getattr__(self, name: str) -> Any:
        if name in MOVING:
            raise RolloutError(
                f"rollout_func reads trainer.{name}, which learns meanwhile ({self._trainer.args.overlap}). "
                "Sample with trainer.generator.generate(prompt_ids, n, sampling), which has one version of the weights "
                "for all of a round, or leave that setting out."
            )
        return getattr(self._trainer, name)
