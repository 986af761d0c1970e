"""A random twin of a model's layers, small, with every distance that its config names shrunk to a few tokens.

What depends on the distance between two tokens (a sliding window, a chunk, a sparse index, a position from which on
angles are scaled) does not show on a short row, and a row of the model itself that is long enough may take minutes.
So the model's own code is built anew from its config, with one layer of each kind, and shown rows that reach past all.
"""

from __future__ import annotations

import copy
import re
from typing import Any

import torch
from torch import nn

from strop.model.dropout import disable_dropout
from strop.model.rope import LENGTH_DEPENDENT, rope_parts

SHRUNK = 8  # tokens
_DISTANCE = re.compile(r"window(_size|_len)?$|chunk_size$|block_size$|index_topk$|index_kpool$|local_attention$")
_SCALING = ("original_max_position_embeddings", "floor_scale")
_BLOCKS = re.compile(r"(topk|local)_blocks$")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_WIDTHS = ("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size")


def boundaries(config: Any) -> dict[str, int]:
    """Every distance in tokens that a config names, by its name."""
    return {name: value for part in _parts(config) for name, value in part.items() if _is_boundary(name, value)}


def twin_of(decoder: Any) -> nn.Module | None:
    """The twin, float32 on the CPU and in evaluation mode; None where the layers cannot be made from a config."""
    try:
        with torch.device("cpu"), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            twin = type(decoder)(_shrunk(decoder.config)).float().eval()
            with torch.no_grad():
                for parameter in twin.parameters():
                    if parameter.dim() > 1:  # wide, so that a token more or less is seen
                        parameter.normal_(std=0.15)
            return disable_dropout(twin)
    except Exception:  # whatever foreign constructors raise on sizes that do not fit each other
        return None


def _shrunk(config: Any) -> Any:
    config = copy.deepcopy(config)
    layers = getattr(config, "num_hidden_layers", 0)
    kinds = [name for name, value in vars(config).items() if isinstance(value, list) and len(value) == layers > 0]
    kept = _one_of_each([getattr(config, name) for name in kinds], layers)
    # Heads keep their size: much is laid out by it (rotary factors and sections, latent ranks).
    heads, of_keys = config.num_attention_heads, getattr(config, "num_key_value_heads", None)
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    few = {"num_attention_heads": min(heads, 4), "hidden_size": min(heads, 4) * size, "vocab_size": 128}
    if of_keys is not None:
        few["num_key_value_heads"] = min(of_keys, few["num_attention_heads"] // (1 if of_keys == heads else 2)) or 1
    few |= {name: min(value, 32) for name in _EXPERTS if isinstance(value := getattr(config, name, None), int)}
    few |= {name: min(value, 64) for name in _WIDTHS if isinstance(value := getattr(config, name, None), int)}
    few |= {name: [getattr(config, name)[i] for i in kept] for name in kinds}
    few |= {"num_hidden_layers": len(kept), "num_kv_shared_layers": 0, "pad_token_id": 0}
    for name, value in few.items():
        if hasattr(config, name):
            setattr(config, name, value)
    for part in _parts(config):
        for name, value in part.items():
            if _BLOCKS.search(name):
                part[name] = min(value, 2)
            elif _is_boundary(name, value) and part.get("rope_type") not in LENGTH_DEPENDENT:
                part[name] = min(value, SHRUNK)
    config._attn_implementation = "eager"
    return config


def _one_of_each(lists: list[list[Any]], layers: int) -> list[int]:
    """The first layer of every kind, layers being of one kind if all lists say the same of them; at least two."""
    if not lists:
        return list(range(min(layers, 4)))
    first: dict[str, int] = {}
    for layer, kind in enumerate(zip(*lists, strict=True)):
        first.setdefault(str(kind), layer)
    return sorted({*list(first.values())[:8], *range(min(layers, 2))})


def _is_boundary(name: str, value: Any) -> bool:
    named = _DISTANCE.search(name) or name in _SCALING
    return bool(named) and isinstance(value, int) and not isinstance(value, bool) and value > 0


def _parts(config: Any) -> list[dict[str, Any]]:
    return [vars(config), *rope_parts(config)]
