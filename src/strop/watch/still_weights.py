"""Whether training moves the weights: an optimizer may hold others, or steps may round to nothing."""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback

from strop.model.shards import local_part
from strop.watch.alarms import Alarms

STEPS = 10
SAMPLED = 256
"""Entries of each weight that are looked at."""
EXPLAINED = frozenset(("zero_gradient", "nothing_supervised", "nonfinite"))
"""Alarms that say already why nothing moves."""


class StillWeights(TrainerCallback):
    """Sounds an alarm if no trained weight has moved after `STEPS` steps with a learning rate above zero, or at the
    end of a shorter run."""

    def __init__(self, alarms: Alarms) -> None:
        self.alarms = alarms
        self.steps = 0
        self.before: dict[str, torch.Tensor] | None = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps, self.before = 0, None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.before is None:
            self.before = sample(kwargs["model"])
        groups = getattr(kwargs["optimizer"], "param_groups", [])
        self.steps += any(float(group.get("lr", 1.0)) > 0 for group in groups)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.steps == STEPS:
            self.look(kwargs["model"], state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if 0 < self.steps < STEPS:
            self.look(kwargs["model"], state.global_step)

    def look(self, model: torch.nn.Module, step: int) -> None:
        """Compare with the weights of the first step, once."""
        before, self.before = self.before, {}
        if not before or EXPLAINED & self.alarms.raised.keys():
            return
        after = sample(model)
        if all(name in after and torch.equal(after[name], values) for name, values in before.items()):
            self.alarms.sound(
                "weights_stand_still",
                step,
                f"none of the {len(before)} trained weights moved in {self.steps} steps, though there is a gradient. "
                "Either the optimizer holds other weights than the model's (make it from trainer.model), or its steps "
                "are too small for the weights' precision: raise learning_rate, or load the model in float32.",
            )


@torch.no_grad()
def sample(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Some entries of every trained weight that this rank holds, by name, spread over the weight."""
    found = {}
    for name, weight in model.named_parameters():
        values = local_part(weight).flatten()
        if weight.requires_grad and values.numel():
            found[name] = values[:: max(1, values.numel() // SAMPLED)].clone()
    return found
