"""The load-balancing loss of mixture-of-experts models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from strop.errors import ConfigError
from strop.model.virtual_tokens import has_virtual_tokens
from strop.model.wrappers import base_model

BEHIND_LEARNED_TOKENS = "The load-balancing loss knows no learned tokens before a row. Set router_aux_loss_coef=0."


def has_router(config: Any) -> bool:
    """Whether the model's config knows router logits (Mixtral, Qwen-MoE, OLMoE, ...)."""
    return hasattr(config.get_text_config(), "output_router_logits")


def router_coefficient(policy: Any, given: float | None) -> float:
    """The weight of a policy's load-balancing loss: `given`, or for None what its model's config names (0: none).

    Raises:
        ConfigError: a weight for a model that has no router, or behind tokens that prompt or prefix tuning learns.
    """
    model = base_model(policy)
    if not has_router(model.config):
        if given:
            raise ConfigError(
                f"router_aux_loss_coef={given}, but {type(model).__name__} has no router whose load could be balanced; "
                "remove it."
            )
        return 0.0
    if given is None and not _routes(model):
        return 0.0
    own = getattr(model.config.get_text_config(), "router_aux_loss_coef", None)
    coefficient = float((own or 0.0) if given is None else given)
    if coefficient and has_virtual_tokens(policy):
        raise ConfigError(BEHIND_LEARNED_TOKENS)
    return coefficient


def _routes(model: Any) -> bool:
    """Whether a layer of the model is one whose router logits transformers records; True where it does not say."""
    recorded = (getattr(model, "_can_record_outputs", None) or {}).get("router_logits")
    kinds = recorded if isinstance(recorded, list) else [recorded]
    layers = tuple(kind for kind in (getattr(entry, "target_class", entry) for entry in kinds) if kind is not None)
    return not layers or any(isinstance(module, layers) for module in model.modules())


def router_loss(router_logits: Sequence[torch.Tensor], weights: torch.Tensor, config: Any) -> torch.Tensor:
    """E * sum_e f_e P_e, where f_e is the share of tokens sent to expert e and P_e its mean probability.

    Args:
        router_logits: one (T, E) tensor per layer.
        weights: (T,) how often each input token counts: 0 for padding, k for a prompt shared by k completions, so
            that the value is the same in every layout.
        config: names the number of experts each token is sent to.

    Returns:
        () float32; the number of experts per token where the load is even. Multiply it by the config's
        `router_aux_loss_coef`.

    Source:
        Switch Transformers, arXiv 2101.03961, equations 4-6, with top-k routing as in transformers.
    """
    config = config.get_text_config()
    chosen = next(
        (getattr(config, n) for n in ("num_experts_per_tok", "moe_topk", "top_k") if hasattr(config, n)), None
    )
    if not router_logits or chosen is None:
        raise ConfigError(
            f"{type(config).__name__} gives no router logits, so it has no load-balancing loss. "
            "Set router_aux_loss_coef=0."
        )
    share = probability = total = torch.zeros((), device=weights.device)
    for logits in router_logits:
        flat = logits.reshape(-1, logits.shape[-1])
        probabilities = flat.softmax(-1, dtype=torch.promote_types(flat.dtype, torch.float32))  # (T, E)
        weight = weights.to(probabilities).unsqueeze(1)  # (T, 1)
        picked = torch.zeros_like(probabilities).scatter_(1, probabilities.topk(chosen, -1).indices, 1.0)
        share = share + (picked * weight).sum(0)
        probability = probability + (probabilities * weight).sum(0)
        total = total + weight.sum()
    return (share / total * (probability / total)).sum() * router_logits[0].shape[-1]
