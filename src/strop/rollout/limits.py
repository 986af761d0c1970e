"""What a model allows: its vocabulary, its positions, and how many rows fit into memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from strop.model import head_memory
from strop.rollout.packed_linear import available_memory_bytes

_MEMORY_SHARE = {"cpu": 0.25, "cuda": 0.4}  # of the free memory, for keys and values
_MOST_SLOTS = {"cpu": 64, "cuda": 256}  # more rows bring little speed and delay the first completions
_POSITION_TABLES = frozenset({"wpe", "embed_positions", "position_embeddings", "position_embedding"})


def is_sharded(model: nn.Module) -> bool:
    """Whether the weights are spread over processes (FSDP, DeepSpeed ZeRO-3, tensor parallel).

    Every forward pass is then a meeting of all processes, and processes that sample completions of different lengths
    would wait for each other for ever.
    """
    return type(model).__name__ == "FullyShardedDataParallel" or any(
        hasattr(parameter, "ds_id") or type(parameter.data).__name__ == "DTensor" for parameter in model.parameters()
    )


def vocab_size(model: PreTrainedModel) -> int:
    """Ids that the input embedding can look up."""
    weight: Any = model.get_input_embeddings().weight
    return int(getattr(weight, "ds_shape", weight.shape)[0])  # ZeRO-3 leaves nothing of a weight where it is not used


def position_limit(model: PreTrainedModel) -> int | None:
    """Tokens a model with a learned position table can read; None for rotary positions, which have no hard end."""
    config = model.config.get_text_config(decoder=True)
    limit = getattr(config, "max_position_embeddings", None)
    if limit is None:
        return None
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.rsplit(".", 1)[-1] in _POSITION_TABLES:
            return int(limit)
    return None


def key_bytes(model: PreTrainedModel, dtype: torch.dtype | None = None) -> int:
    """Bytes of keys and values that one token takes in all layers; `dtype` is autocast's, None the model's own."""
    config = model.config.get_text_config(decoder=True)
    by_layer = getattr(config, "per_layer_config", None)  # since transformers 5: sizes may differ between layers
    layers = [by_layer[i] if by_layer else config for i in range(config.num_hidden_layers)]
    numbers = sum(
        (getattr(layer, "num_key_value_heads", None) or layer.num_attention_heads)
        * (getattr(layer, "head_dim", None) or layer.hidden_size // layer.num_attention_heads)
        for layer in layers
    )
    return 2 * numbers * (dtype or model.dtype).itemsize


def default_slots(model: PreTrainedModel, device: torch.device, capacity: int, dtype: torch.dtype | None = None) -> int:
    """How many rows of `capacity` tokens are decoded at a time where the user does not say."""
    return max(1, min(_MOST_SLOTS.get(device.type, 64), _tokens(model, device, dtype) // capacity))


def kept_tokens(model: PreTrainedModel, dtype: torch.dtype | None = None) -> int:
    """How many tokens' keys are kept from one turn of conversations to the next: half of what slots may take."""
    return _tokens(model, model.device, dtype) // 2


def free_bytes(device: torch.device) -> int:
    """Memory that a rollout can have: what new tensors can have on a card, and of the machine where none says."""
    free = head_memory.free_bytes(device)
    return available_memory_bytes() if free is None else free


def _tokens(model: PreTrainedModel, device: torch.device, dtype: torch.dtype | None) -> int:
    """How many tokens' keys and values fit into the share of the free memory that they may take."""
    return int(free_bytes(device) * _MEMORY_SHARE.get(device.type, 0.25) // key_bytes(model, dtype))
