"""AdaLoRA's own part of a step: which singular values it keeps, and a term that keeps its factors orthogonal.

    loss + orth_reg_weight * mean over P in {A, B} of || P P^T - I ||_F          (P^T P for B)

Ranks are allocated after every optimizer step while the gradients are still there, by PEFT's allocator.
Reference: arXiv 2303.10512, equations 4 and 8.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback

from strop.model import is_peft
from strop.watch.say import say

_MEMORY = ("ipt", "exp_avg_ipt", "exp_avg_unc")  # of PEFT's allocator: importance of every singular value


def adalora_config(policy: Any) -> Any:
    """The config of the adapter that is trained if it is AdaLoRA's, else None."""
    config = policy.active_peft_config if is_peft(policy) else None
    return config if config is not None and getattr(config.peft_type, "value", config.peft_type) == "ADALORA" else None


def orthogonality(policy: Any) -> torch.Tensor:
    """The weighted term, a scalar with gradient."""
    config, terms = adalora_config(policy), []
    for name, factor in policy.named_parameters():
        if factor.requires_grad and (".lora_A." in name or ".lora_B." in name):
            gram = factor @ factor.T if ".lora_A." in name else factor.T @ factor  # (r, r)
            terms.append(torch.linalg.matrix_norm(gram - torch.eye(len(gram), device=gram.device, dtype=gram.dtype)))
    return config.orth_reg_weight * torch.stack(terms).mean()


class AllocateRanks(TrainerCallback):
    """Gives every singular value its place in the budget, or none, after each optimizer step."""

    def __init__(self, policy: Any) -> None:
        self.policy = policy

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        steps = adalora_config(self.policy).total_step
        if steps != state.max_steps:
            say(
                args,
                f"AdaLoRA shares out its ranks over total_step={steps} steps and the run has {state.max_steps}; with "
                "equal numbers the budget is reached when the run ends.",
            )

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.policy.base_model.update_and_allocate(state.global_step)


def allocation(policy: Any) -> dict[str, Any]:
    """What the allocator remembers, for a checkpoint; empty for other adapters."""
    if (config := adalora_config(policy)) is None:
        return {}
    allocator = policy.base_model.rankallocator
    memory = {name: dict(getattr(allocator, name)) for name in _MEMORY}
    return {"adalora": {**memory, "rank_pattern": config.rank_pattern}}


def take_back_allocation(policy: Any, state: dict[str, Any]) -> None:
    """Put an allocator back to where a checkpoint left it."""
    if (kept := state.get("adalora")) is not None:
        for name in _MEMORY:
            setattr(policy.base_model.rankallocator, name, kept[name])
        adalora_config(policy).rank_pattern = kept["rank_pattern"]
