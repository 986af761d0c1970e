"""Weights averaged over a run, with the average's lag taken out: bias-corrected EMA (BEMA)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from strop.engine.sharding import comparable, whole


class BEMACallback(TrainerCallback):
    """Keeps an average of the trained weights and saves it at the end of training, in `output_dir/bema`.

    With t the step, theta_0 the weights at `update_after`, every `update_freq` steps from there:

        beta  = max((lag + multiplier t)^-ema_power, min_ema_multiplier)
        alpha = (lag + multiplier t)^-bias_power
        ema   <- (1 - beta) ema + beta theta_t
        saved  = ema + alpha (theta_t - theta_0)

    Of a model with an adapter, the adapter is averaged and saved. A resumed run begins its average anew. Of several
    processes the first one keeps the average, of weights in shards too (FSDP2, ZeRO-3).
    Source: arXiv 2508.00180.

    Args:
        update_freq: steps between updates.
        ema_power: how fast beta falls; a constant average with `min_ema_multiplier`.
        bias_power: how fast the correction falls.
        lag: steps that the schedules are ahead.
        update_after: steps before the first one that counts.
        multiplier: scales the steps in both schedules.
        min_ema_multiplier: lower bound of beta, in [0, 1].
        device: where the average is kept.
    """

    def __init__(
        self,
        update_freq: int = 400,
        ema_power: float = 0.5,
        bias_power: float = 0.2,
        lag: int = 10,
        update_after: int = 0,
        multiplier: float = 1.0,
        min_ema_multiplier: float = 0.0,
        device: str = "cpu",
    ) -> None:
        self.update_freq, self.update_after = update_freq, update_after
        self.ema_power, self.bias_power = ema_power, bias_power
        self.lag, self.multiplier, self.min_ema_multiplier = lag, multiplier, min_ema_multiplier
        self.device = device
        self.start: dict[str, torch.Tensor] = {}  # theta_0
        self.ema: dict[str, torch.Tensor] = {}
        self.corrected: dict[str, torch.Tensor] = {}  # what is saved
        self.model: Any = None
        self.keeps = True  # this process has the average

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.model, self.keeps = getattr(model, "module", model), state.is_world_process_zero
        self.restart()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        past = state.global_step - self.update_after
        if past == 0:
            self.restart()
        elif past > 0 and past % self.update_freq == 0:
            self.update(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        with comparable([self.model]):
            weights = {name: whole(weight) for name, weight in self.model.state_dict().items()} | self.corrected
            if self.keeps:
                self.model.save_pretrained(Path(args.output_dir) / "bema", state_dict=weights)

    def trained(self) -> dict[str, torch.Tensor]:
        """The trained weights as they are now, copied to `device`; nothing on other processes than the first."""
        taken = {}
        with comparable([self.model]):
            for name, weight in self.model.named_parameters():
                if weight.requires_grad:
                    now = whole(weight.detach())  # a meeting of all ranks
                    if self.keeps:
                        taken[name] = now.to(self.device, copy=True)
        return taken

    def restart(self) -> None:
        """Begin the average at the present weights."""
        self.start, self.ema, self.corrected = self.trained(), self.trained(), self.trained()

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the present weights into the average."""
        moment = self.lag + self.multiplier * step
        beta, alpha = max(moment**-self.ema_power, self.min_ema_multiplier), moment**-self.bias_power
        for name, weight in self.trained().items():
            self.ema[name].lerp_(weight, beta)
            self.corrected[name] = self.ema[name] + alpha * (weight - self.start[name])
