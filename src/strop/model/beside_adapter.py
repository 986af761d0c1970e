"""Weights of the base model that are trained beside an adapter, and that PEFT does not save with it.

PEFT's folder holds what the adapter owns (low-rank matrices, saved modules, token rows, biases that it trains). Norms,
embeddings or heads that were unfrozen afterwards would stay behind, in a checkpoint too; they get a file of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from strop.errors import SetupError
from strop.model.kept_weights import held_by_adapters
from strop.model.wrappers import is_peft

FILE = "beside_adapter.safetensors"


def beside_adapter(model: Any) -> dict[str, nn.Parameter]:
    """Those weights by name, and those that a folder brought; empty for a model without an adapter."""
    if not is_peft(model):
        return {}
    own, brought = held_by_adapters(model), getattr(model, "brought_beside", ())
    biases = any(getattr(config, "bias", "none") != "none" for config in model.peft_config.values())
    return {
        name: weight
        for name, weight in model.named_parameters()
        if name in brought
        or (weight.requires_grad and id(weight) not in own and not (biases and name.endswith("bias")))
    }


def save_beside(model: Any, folder: Path, state: Mapping[str, torch.Tensor] | None = None) -> None:
    """Write them to a folder; `state` are the whole weights where the model's own are cut into shards."""
    if weights := beside_adapter(model):
        whole = {name: (weights if state is None else state)[name] for name in weights}
        save_file({name: value.detach().cpu().contiguous() for name, value in whole.items()}, folder / FILE)


@torch.no_grad()
def load_beside(model: Any, folder: Path) -> None:
    """Take them from a folder, if it has any.

    Raises:
        SetupError: it has not those that are trained, or has others than the model.
    """
    saved = load_file(folder / FILE) if (folder / FILE).is_file() else {}
    weights = dict(model.named_parameters())
    odd = [name for name, value in saved.items() if name not in weights or weights[name].shape != value.shape]
    odd += [name for name in beside_adapter(model) if name not in saved]
    if odd:
        raise SetupError(
            f"Weights beside the adapter do not come again from {folder}: {', '.join(odd[:3])}. Load the base model "
            "that the adapter was trained on, and unfreeze the weights that were trained then."
        )
    for name, value in saved.items():
        weights[name].copy_(value)
    if saved:
        model.brought_beside = tuple(saved)
