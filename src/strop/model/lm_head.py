"""What stands between the last hidden state and the probabilities: the output matrix and what is done to its logits.

    raw = h W^T + b
    z = cap * tanh(scale * raw / cap), or scale * raw without a cap
    p = softmax(z / temperature)

Architectures differ in scale and cap, and say so in their configs; `select` checks on a small example that what is
read here gives the model's own log-probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from strop.errors import SetupError


@dataclass(frozen=True, slots=True)
class LMHead:
    """The output layer of a causal language model.

    Attributes:
        module: maps (n, H) to raw logits (n, V); a plain `nn.Linear`, or anything (LoRA, quantised).
        scale: factor on the raw logits (Cohere's logit_scale, 1 / Granite's logits_scaling).
        softcap: bound on the scaled logits (Gemma 2's final_logit_softcapping), or None.
    """

    module: nn.Module
    scale: float = 1.0
    softcap: float | None = None

    @property
    def is_plain(self) -> bool:
        """Whether the layer is exactly h W^T + b, so that weight and bias may be used without calling it."""
        layer = self.module
        return (
            isinstance(layer, nn.Linear)
            and type(layer).forward is nn.Linear.forward
            and "forward" not in vars(layer)
            and type(layer.weight) in (nn.Parameter, torch.Tensor)
        )

    @property
    def is_spread(self) -> bool:
        """Whether the weight is spread over ranks (ZeRO-3, FSDP), and whole only while the layer is called."""
        weight: Any = getattr(self.module, "weight", None)
        return hasattr(weight, "ds_id") or type(weight).__name__ == "DTensor"

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """The model's logits (n, V) of hidden states (n, H), with gradient."""
        raw = self.module(hidden) * self.scale
        return raw if self.softcap is None else self.softcap * torch.tanh(raw / self.softcap)


@dataclass(frozen=True, slots=True)
class Reading:
    """How raw logits are read: z = cap tanh(scale (raw + bias) / cap), or scale (raw + bias); p = softmax(z / T)."""

    scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0
    bias: torch.Tensor | None = None  # (V,)

    @classmethod
    def of(cls, head: LMHead, temperature: float, bias: torch.Tensor | None = None) -> Reading:
        return cls(head.scale, head.softcap, temperature, bias)

    def logits_(self, raw: torch.Tensor) -> torch.Tensor:
        """Raw logits to the model's logits, in place, (n, V)."""
        if self.bias is not None:
            raw.add_(self.bias.to(raw.dtype))
        if self.scale != 1.0:
            raw.mul_(self.scale)
        if self.softcap is not None:
            raw.div_(self.softcap).tanh_().mul_(self.softcap)
        return raw

    def scales(
        self, grad_logps: torch.Tensor, grad_entropy: torch.Tensor | None, entropy: torch.Tensor | None
    ) -> dict[str, torch.Tensor | None]:
        """What `gradient` multiplies by where it is more than the residual, all (n,)."""
        scale = self.scale / self.temperature
        found: dict[str, torch.Tensor | None] = {"factor": grad_logps * -scale}
        return found if grad_entropy is None else found | {"bonus": grad_entropy * scale, "entropy": entropy}


def lm_head_of(model: Any) -> LMHead:
    """The output layer of a causal language model, with the scale and cap its config names.

    Raises:
        SetupError: the model has no output embeddings (it is no language model).
    """
    layer = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if layer is None:
        raise SetupError(
            f"{type(model).__name__} has no language-model head, so it gives no log-probabilities. "
            "Pass a causal language model (load_model(..., task='causal'))."
        )
    config = model.config.get_text_config()
    scale = 1.0
    if getattr(model, "logit_scale", None) is not None:
        scale *= float(model.logit_scale)
    if getattr(config, "logits_scaling", None):
        scale /= float(config.logits_scaling)
    if getattr(config, "lm_head_multiplier", None):
        scale *= float(config.lm_head_multiplier)
    softcap = getattr(config, "final_logit_softcapping", None)
    return LMHead(layer, scale, None if softcap is None else float(softcap))
