"""What vLLM is sent of a policy: the adapter of a LoRA policy, else all weights, under the names of its checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers.core_model_loading import revert_weight_conversion

from strop.errors import SetupError
from strop.model.beside_adapter import beside_adapter
from strop.model.wrappers import unwrap
from strop.rollout import limits
from strop.rollout.rollout_mode import transformers_model

SERVED_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM makes room for."""


class VllmWeights:
    """The weights of one policy on their way to vLLM.

    Args:
        model: a transformers model, or one inside PEFT with one LoRA adapter.

    Raises:
        SetupError: an adapter that vLLM cannot serve, or weights that are spread over processes.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = unwrap(model)
        self.base = transformers_model(model)
        self.adapter = lora_adapter(self.model)
        if limits.is_sharded(model):
            raise SetupError(
                "The vllm engine sends whole weights, and this policy's are spread over processes (FSDP, ZeRO-3 or "
                "tensor parallel). Use engine='transformers', or train with DDP, ZeRO-1 or ZeRO-2."
            )

    @property
    def lora_rank(self) -> int | None:
        """The largest rank of the adapter, rounded up to one that vLLM makes room for; None without an adapter."""
        if self.adapter is None:
            return None
        config = self.model.peft_config[self.adapter]
        return served_rank(max([int(config.r), *(config.rank_pattern or {}).values()]))

    def tensors(self) -> dict[str, torch.Tensor]:
        """All weights by the names that a checkpoint of this architecture has.

        Tied ones under each of their names: vLLM may keep a repacked copy of the head, which goes stale where only the
        embedding is reloaded.
        """
        state = {name: tensor.detach() for name, tensor in self.base.state_dict().items()}
        return dict(revert_weight_conversion(self.base, state))

    def fingerprint(self) -> tuple[float, ...]:
        """Sum and norm of every tensor that would be sent: other numbers, other weights."""
        sums = []
        for name, parameter in self.model.named_parameters():
            if self.adapter is None or f".{self.adapter}." in name:
                flat = parameter.detach()
                sums += [flat.sum(dtype=torch.float64), torch.linalg.vector_norm(flat, dtype=torch.float64)]
        return tuple(torch.stack([value.to(sums[0].device) for value in sums]).tolist()) if sums else ()

    def save(self, folder: Path) -> Path:
        """Write safetensors files; returns the folder that vLLM should read."""
        if self.adapter is None:
            folder.mkdir(parents=True, exist_ok=True)
            self.base.config.save_pretrained(folder)
            state, seen = self.tensors(), set()
            for name, tensor in state.items():
                shared = tensor.data_ptr() in seen  # safetensors writes no tensor twice
                seen.add(tensor.data_ptr())
                state[name] = tensor.clone() if shared else tensor.contiguous()
            save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
            return folder
        self.model.save_pretrained(folder, selected_adapters=[self.adapter])
        inner = folder / self.adapter  # PEFT puts every adapter but "default" into a folder of its own
        return inner if inner.is_dir() else folder


def served_rank(rank: int) -> int:
    """The least rank that vLLM makes room for and an adapter of `rank` fits in."""
    return next((served for served in SERVED_RANKS if served >= rank), rank)


def lora_adapter(model: nn.Module) -> str | None:
    """Name of the active LoRA adapter of a PEFT model, None for any other model.

    Raises:
        SetupError: another kind of adapter, several at a time, or parts of LoRA that vLLM has not.
    """
    configs: Any = getattr(model, "peft_config", None)
    if not configs:
        return None
    active = list(getattr(model, "active_adapters", configs))
    if len(active) != 1 or str(getattr(configs[active[0]].peft_type, "value", "")) != "LORA":
        raise SetupError(
            f"vLLM serves one LoRA adapter at a time; the policy has {active} active. Use engine='native'."
        )
    config = configs[active[0]]
    extras = {"modules_to_save": config.modules_to_save, "use_dora": config.use_dora}
    extras["bias"] = config.bias if config.bias != "none" else None
    extras |= {
        "trainable_token_indices": getattr(config, "trainable_token_indices", None),
        "trained beside it": [*beside_adapter(model)],
    }
    unserved = [f"{name}={value!r}" for name, value in extras.items() if value]
    if unserved:
        raise SetupError(
            f"vLLM serves low-rank matrices only, and the policy's adapter also has {', '.join(unserved)}. "
            "Leave that out of the LoraConfig, or use engine='native'."
        )
    return active[0]
