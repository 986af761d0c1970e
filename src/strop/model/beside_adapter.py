"""Weights of the base model that are trained beside an adapter: what they were at the start, and where they are saved.

Switching an adapter off brings back what the adapter holds itself (low-rank matrices, saved modules, token rows). It
does not bring back biases that LoRA trains in place (`bias="all"`, `"lora_only"`), nor norms, embeddings or heads that
were unfrozen. Their start is kept here, and stands in their place while the reference is asked (`KeptWeights`). PEFT's
folder holds what the adapter owns, those biases too. The others would stay behind, in a checkpoint too; they get a file
of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from strop.errors import SetupError
from strop.model.wrappers import is_peft

FILE = "beside_adapter.safetensors"


class KeptWeights:
    """Copies of every trained weight of a PEFT model that stays when its adapters are switched off.

    Memory: one frozen copy of those weights, nothing where there are none.
    """

    def __init__(self, policy: Any) -> None:
        self._policy = policy
        self._start: dict[str, torch.Tensor] = {}
        self.take()

    def take(self) -> None:
        """Copy what is trained and was not when copies were taken last: it has not moved yet."""
        own = held_by_adapters(self._policy)
        self._start |= {
            name: parameter.detach().clone()
            for name, parameter in self._policy.named_parameters()
            if parameter.requires_grad and id(parameter) not in own and name not in self._start
        }

    def __bool__(self) -> bool:
        return bool(self._start)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The start in the model inside the block; afterwards the trained weights, the very same tensors."""
        pairs = self.pairs()
        trained = [parameter.data for _, parameter in pairs]
        try:
            for start, parameter in pairs:
                parameter.data = start
            yield
        finally:
            for (_, parameter), data in zip(pairs, trained, strict=True):
                parameter.data = data

    def pairs(self) -> list[tuple[torch.Tensor, nn.Parameter]]:
        """(start, trained weight) of every kept weight, on the weight's device and in its dtype.

        Raises:
            SetupError: the weights were cut into shards since.
        """
        if not self._start:
            return []
        now = dict(self._policy.named_parameters())
        cut = [name for name, start in self._start.items() if name not in now or now[name].shape != start.shape]
        if cut:
            raise SetupError(
                f"Weights beside the adapter are trained ({', '.join(sorted(cut)[:3])}) and cut into shards, so their "
                "start cannot be put back for the reference. Train the adapter alone (bias='none', nothing unfrozen), "
                "or give a ref_model."
            )
        for name, start in self._start.items():
            self._start[name] = start.to(now[name].device, now[name].dtype)
        return [(start, now[name]) for name, start in self._start.items()]


def held_by_adapters(policy: Any) -> set[int]:
    """Identities of the parameters that PEFT's layers declare as their adapters' own, and of learned tokens."""
    parts = (
        getattr(module, name, None)
        for module in policy.modules()
        for name in getattr(module, "adapter_layer_names", ())
    )
    modules = [part for part in parts if isinstance(part, nn.Module)]
    modules += [policy.prompt_encoder] if hasattr(policy, "prompt_encoder") else []
    return {id(parameter) for module in modules for parameter in module.parameters()}


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
