"""What is closed when training ends."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from strop.agents.environments import Environments


class CloseEnvironments(TrainerCallback):
    """Closes a run's environments; a later evaluation makes them anew."""

    def __init__(self, environments: Environments) -> None:
        self.environments = environments

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.environments.close()
