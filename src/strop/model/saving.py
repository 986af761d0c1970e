"""A model as it is to be saved, and as a checkpoint brings it back: what a run changed for its own sake is put back
inside a block, and what has other names in the file is found."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel

from strop.errors import SetupError
from strop.model.beside_adapter import load_beside
from strop.model.dropout import dropout_in_config
from strop.model.wrappers import unwrap


@contextmanager
def as_to_save(model: nn.Module) -> Iterator[None]:
    """Dropout as its config had it, all of AdaLoRA's ranks, and weights as they are trained (RWKV divides some in
    evaluation)."""
    for module in model.modules():
        if vars(module).get("layers_are_rescaled"):
            _unscale(module)
    with dropout_in_config(model), whole_ranks(model):
        yield


@contextmanager
def whole_ranks(model: Any) -> Iterator[None]:
    """AdaLoRA's adapters are saved and loaded with all singular values, those that were not kept being zero.

    By its rank pattern PEFT would cut them away for good, and scale the others by another rank.
    """
    configs = [c for c in getattr(model, "peft_config", {}).values() if getattr(c, "peft_type", None) == "ADALORA"]
    patterns = [config.rank_pattern for config in configs]
    try:
        for config in configs:
            config.rank_pattern = None
        yield
    finally:
        for config, pattern in zip(configs, patterns, strict=True):
            config.rank_pattern = pattern


def load_rest(model: Any, folder: Path) -> None:
    """What the parent's loading of a checkpoint leaves as it was: weights under other names, and beside an adapter."""
    load_renamed(model, folder)
    load_beside(model, folder)


@torch.no_grad()
def load_renamed(model: Any, folder: Path) -> None:
    """Take the weights that a folder holds under other names than the model has.

    transformers saves the experts of a mixture one by one, as they lie on the hub, and holds them stacked; its Trainer
    reads by name, and passes over what it does not find.

    Raises:
        SetupError: weights are not in the folder at all.
    """
    model, saved = unwrap(model), saved_names(folder)
    if not saved or not isinstance(model, PreTrainedModel):
        return
    state = model.state_dict()
    found = {weight.data_ptr() for name, weight in state.items() if name in saved}  # of tied ones, one is saved
    missing = [name for name, weight in state.items() if name not in saved and weight.data_ptr() not in found]
    if not missing:
        return
    options = {"config": copy.deepcopy(model.config), "dtype": model.dtype, "output_loading_info": True}
    read, info = type(model).from_pretrained(folder, **options)
    if lost := sorted(set(info["missing_keys"]).intersection(missing)):
        raise SetupError(f"{folder} holds no weights for {', '.join(lost[:3])}. Take another checkpoint.")
    weights = read.state_dict()
    for name in missing:
        state[name].copy_(weights[name])


def saved_names(folder: Path) -> set[str]:
    """The names of the weights in the safetensors files of a model's folder."""
    names: set[str] = set()
    for path in folder.glob("model*.safetensors"):
        with safe_open(path, framework="pt") as file:
            names.update(file.keys())
    return names


def _unscale(module: Any) -> None:
    """The next forward pass divides them again, if it is one of evaluation."""
    training, module.training = module.training, True
    module._rescale_layers()
    module.training = training
