"""A random twin of a model's layers, small, with every distance that its config names shrunk to a few tokens.

What depends on the distance between two tokens (a sliding window, a chunk, a sparse index, a position from which on
angles are scaled) does not show on a short row, and a row of the model itself that is long enough may take minutes.
So the model's own code is built anew from its config, with as many layers as show each kind, and shown rows that reach
past all of them.
"""

from __future__ import annotations

import copy
import math
import re
from typing import Any

import torch
from torch import nn

from strop.model.dropout import disable_dropout
from strop.model.rope import LENGTH_DEPENDENT, rope_parts

SHRUNK = 8  # tokens
_MOST_WEIGHTS = 100_000_000  # a twin is made in about a second, or not at all
_DISTANCE = re.compile(r"window(_size|_len)?$|chunk_size$|block_size$|index_topk$|index_kpool$|local_attention$")
_SCALING = ("original_max_position_embeddings", "floor_scale")
_BLOCKS = re.compile(r"(topk|local)_blocks$")
_STATE_HEADS = {
    "mamba_n_heads": "mamba_d_head",
    "mamba_num_heads": "mamba_head_dim",
    "n_mamba_heads": "mamba_headdim",
    "num_heads": "head_dim",
}
"""How many heads a state-space layer has, and how large each is; together they are `expand` times the hidden size."""
_STATE_GROUPS = ("mamba_n_groups", "mamba_ngroups", "n_groups")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def boundaries(config: Any) -> dict[str, int]:
    """Every distance in tokens that a config names, by its name."""
    parts = (vars(config), *rope_parts(config))
    return {name: value for part in parts for name, value in part.items() if _is_boundary(name, value)}


def twin_of(decoder: Any) -> nn.Module | None:
    """The twin, float32 on the CPU and in evaluation mode; None where the config makes no small one."""
    try:
        config = _shrunk(decoder.config)
        with torch.device("meta"):
            if sum(weight.numel() for weight in type(decoder)(config).parameters()) > _MOST_WEIGHTS:
                return None
        with torch.device("cpu"), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            twin = type(decoder)(config).float().eval()
            with torch.no_grad():
                for parameter in twin.parameters():
                    if parameter.dim() > 1:  # wide, so that a token more or less is seen
                        parameter.normal_(std=0.15)
            return disable_dropout(twin)
    except Exception:  # whatever foreign constructors raise on sizes that do not fit each other
        return None


def _shrunk(config: Any) -> Any:
    """A copy with fewer and narrower layers and with short distances."""
    config = copy.deepcopy(config)
    field = lambda name: config.attribute_map.get(name, name)  # noqa: E731
    own = vars(config)  # not attributes: those that differ between layers refuse to be read
    layers, by_layer = _enough_layers(config)
    own.update({name: own[name][:layers] for name in by_layer})
    heads, of_keys = own.get(field("num_attention_heads"), 4), own.get(field("num_key_value_heads"))
    few = min(heads, 4)
    # Heads keep their size: much is laid out by it (rotary factors and sections, latent ranks).
    size = own.get(field("head_dim")) or own[field("hidden_size")] // heads
    values = {"num_attention_heads": few, "hidden_size": few * size, "num_hidden_layers": layers, "pad_token_id": 0}
    values |= {"num_kv_shared_layers": 0} | {name: 128 for name in own if name.startswith("vocab_size")}
    if of_keys is not None:
        values["num_key_value_heads"] = min(of_keys, few if of_keys == heads else max(1, few // 2))
    values |= _state_heads(own, few * size)
    for name, value in values.items():
        if field(name) in own:
            own[field(name)] = value
    for part in (own, *rope_parts(config)):
        for name, value in part.items():
            if name in _EXPERTS or "intermediate_size" in name:
                most = 32 if name in _EXPERTS else 64
                part[name] = [min(x, most) for x in value] if isinstance(value, list) else value and min(value, most)
            elif _BLOCKS.search(name):
                part[name] = min(value, 2)
            elif _is_boundary(name, value) and part.get("rope_type") not in LENGTH_DEPENDENT:
                part[name] = min(value, SHRUNK)
    config._attn_implementation = "eager"
    return config


def _state_heads(own: dict[str, Any], hidden: int) -> dict[str, int]:
    """As many heads of state-space layers as the hidden size asks for, in groups that divide them."""
    wide = hidden * own.get("mamba_expand", own.get("expand", 0))
    found = {}
    for heads, size in _STATE_HEADS.items():
        if wide and own.get(heads) and own.get(size):
            found[heads] = max(1, wide // own[size])
            found |= {groups: math.gcd(own[groups], found[heads]) for groups in _STATE_GROUPS if groups in own}
    if "mamba_d_ssm" in own:
        found["mamba_d_ssm"] = found["mamba_n_heads"] * own["mamba_d_head"]
    return found


def _enough_layers(config: Any) -> tuple[int, list[str]]:
    """How many of the first layers show one of each kind, at least two, and which fields say something of each layer.

    Layers are of one kind if all those fields say the same of them.
    """
    layers = config.num_hidden_layers
    lists = {name: value for name, value in vars(config).items() if isinstance(value, list) and len(value) == layers}
    names = [name for name, value in lists.items() if layers < 3 or len(set(map(str, value))) < layers]  # no numbering
    kinds = [str(kind) for kind in zip(*(vars(config)[name] for name in names), strict=True)]
    return min(layers, max(2, *(1 + kinds.index(kind) for kind in kinds)) if kinds else 4), names


def _is_boundary(name: str, value: Any) -> bool:
    named = _DISTANCE.search(name) or name in _SCALING
    return bool(named) and isinstance(value, int) and not isinstance(value, bool) and value > 0
