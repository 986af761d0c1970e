"""Weights that are cut into shards over ranks (FSDP2, DeepSpeed): every pass over the model is a meeting of all ranks.

So ranks must run it equally often. They need not have equally many micro-batches: groups without a gradient are left
out, token budgets cut differently, the last step is short. `fillers` makes up for the difference.

FSDP2's cuts are made here (`cut`), not by accelerate, which leaves a model that is cut alone: the layers, and one unit
of all that is left, which stays gathered from the forward pass to the end of the backward pass, so that a loss may
read the output layer. What needs whole weights (sampling, saving, loading) gets them for a while from `Shards`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from strop.collectives import gather_numbers
from strop.errors import ConfigError
from strop.model.virtual_tokens import has_virtual_tokens
from strop.model.zero3 import read_whole, written_whole
from strop.records import Example

WHOLE_OPTIMIZERS = ("adafactor", "8bit", "32bit", "bnb", "ademamix")
"""Parts of the names of optimizers that step whole weights only: transformers' Adafactor, and bitsandbytes'."""


def is_sharded(accelerator: Any) -> bool:
    """Whether weights, gradients or optimizer states are cut into shards over ranks."""
    return accelerator.distributed_type in (DistributedType.DEEPSPEED, DistributedType.FSDP)


def fillers(accelerator: Any, parts: list[list[Example]], other: Callable[[], Example]) -> list[list[Example]]:
    """What to compute beside one's micro-batches, for the rank that has the most of them; its results count nowhere.

    Args:
        parts: micro-batches of this rank; on other ranks too this is called with theirs.
        other: an example for a rank that has none.
    """
    if not is_sharded(accelerator) or accelerator.num_processes == 1:
        return []
    everyone = gather_numbers({"parts": float(len(parts))}, accelerator.num_processes)
    most = int(max(said["parts"] for said in everyone))
    return [[parts[0][0] if parts else other()] for _ in range(most - len(parts))]


def is_zero3(accelerator: Any) -> bool:
    """Whether DeepSpeed cuts the weights too."""
    deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
    return deepspeed and accelerator.state.deepspeed_plugin.zero_stage == 3


def check_shards(
    accelerator: Any, model: nn.Module, reference: Any, *, optim: str, adapted: bool, with_critic: bool
) -> None:
    """Refuse, where weights are cut into shards, what would go wrong.

    Args:
        optim: the name of the optimizer.
        adapted: whether an AdaLoRA adapter is trained.
        with_critic: whether a critic is trained beside the model.
    """
    fsdp = accelerator.distributed_type == DistributedType.FSDP
    problems = []
    if (fsdp or is_zero3(accelerator)) and getattr(reference, "keeps_weights", False):
        problems.append(
            "weights beside the adapter are trained, and the reference needs their start; train the adapter alone "
            "(bias='none', nothing unfrozen), or give a ref_model."
        )
    if is_zero3(accelerator) and with_critic:
        asked = accelerator.state.deepspeed_plugin.deepspeed_config["zero_optimization"]
        if not asked.get("stage3_gather_16bit_weights_on_model_save"):
            problems.append(
                "policy and critic are saved as two models, which takes their whole weights; set "
                "stage3_gather_16bit_weights_on_model_save to true in DeepSpeed's zero_optimization."
            )
    if fsdp:
        plugin = accelerator.state.fsdp_plugin
        reasons = {
            "FSDP1: set fsdp_version to 2.": plugin.fsdp_version != 2,
            "cpu_ram_efficient_loading reads the weights on the first process only, and the reference is copied from "
            "them on all; set it to false.": plugin.cpu_ram_efficient_loading,
            "FSDP's activation_checkpointing wraps layers again; set gradient_checkpointing=True instead.": (
                plugin.activation_checkpointing
            ),
            "quantised weights cannot be cut.": any(
                getattr(module, "hf_quantizer", None) for module in model.modules()
            ),
            "prompt and prefix tuning were not tried so; use LoRA.": has_virtual_tokens(model),
            f"optim={optim!r} cannot step shards; take one of torch's: adamw_torch, sgd, adagrad, rmsprop.": (
                any(part in optim for part in WHOLE_OPTIMIZERS)
            ),
            "AdaLoRA's term reads all of an adapter outside of the model's forward pass; use LoRA.": adapted,
        }
        problems += [text for text, found in reasons.items() if found]
    if problems:
        problems[-1] += " Where that cannot be changed: data parallelism, or DeepSpeed's ZeRO-1 or ZeRO-2."
        raise ConfigError.collect("This run cannot be cut into shards (FSDP, ZeRO-3):", problems)


def cut(model: nn.Module, accelerator: Any) -> None:
    """Cut a model's weights into shards in place: its layers, and one unit of embeddings, last norm and heads.

    That unit stays gathered after a forward pass, of a policy until the backward pass has ended.
    """
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    plugin, mesh = accelerator.state.fsdp_plugin, getattr(accelerator, "torch_device_mesh", None)
    precision = plugin.mixed_precision_policy or MixedPrecisionPolicy()
    how = {
        "mesh": None if mesh is None else mesh[tuple(accelerator.parallelism_config.fsdp_dim_names)],
        "mp_policy": replace(precision, output_dtype=None),  # accelerate's would round log-probs to 16 bits
        "offload_policy": plugin.cpu_offload,
    }
    if accelerator.mixed_precision != "no":
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    layers = set(plugin.transformer_cls_names_to_wrap or ())
    if not layers:
        layers = {name for module in model.modules() for name in getattr(module, "_no_split_modules", None) or ()}
    for module in reversed(list(model.modules())):  # inner ones first
        if type(module).__name__ in layers:
            fully_shard(module, reshard_after_forward=plugin.reshard_after_forward, **how)
    fully_shard(model, reshard_after_forward=False, **how)
    for module in model.modules():  # the first gathering notes which weights learn: before a reference freezes some
        if isinstance(module, FSDPModule):
            module.unshard()
            module.reshard()


def whole(tensor: Any) -> Any:
    """All of a tensor; of one in shards gathered from all ranks, which call this together."""
    if not isinstance(tensor, DTensor):
        return read_whole(tensor)
    there: Any = tensor.to(tensor.device_mesh.device_type)  # shards that are offloaded meet on the device
    return there.full_tensor()


def share_of(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """This rank's shard of a tensor that all ranks hold, cut as `like` is."""
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    there = tensor.to(like.device_mesh.device_type)
    return distribute_tensor(there, like.device_mesh, like.placements, src_data_rank=None)


def reshard(model: nn.Module) -> None:
    """Let go of what a forward pass left gathered; what was frozen or unfrozen of it stays so."""
    learn = {name: weight.requires_grad for name, weight in model.named_parameters()}
    for module in model.modules():
        if hasattr(module, "reshard"):
            module.reshard()  # type: ignore[operator]
    for name, weight in model.named_parameters():
        if weight.requires_grad != learn[name]:
            weight.requires_grad_(learn[name])


@contextmanager
def comparable(models: Sequence[nn.Module]) -> Iterator[None]:
    """In here the weights of models that are cut alike can be read and written one by one: FSDP2's as shards, ZeRO-3's
    as whole ones. All ranks enter it together, and do the same."""
    for model in models:
        reshard(model)
    with written_whole([weight for model in models for weight in model.parameters()]):
        yield


class Shards:
    """A model in shards, and the same modules without weights, which take the whole ones for a while."""

    def __init__(self, model: nn.Module, accelerator: Any) -> None:
        room = {id(p): nn.Parameter(p.new_empty(0), requires_grad=p.requires_grad) for p in model.parameters()}
        self.hollow = copy.deepcopy(model, room)  # type: ignore[arg-type]
        self.device = accelerator.device
        cut(model, accelerator)
        accelerator.state.fsdp_plugin.auto_wrap_policy = None  # accelerate would look for layers by their old names
        self.model = model

    @contextmanager
    @torch.no_grad()
    def gathered(self, *, keep: bool, put_back: bool) -> Iterator[nn.Module]:
        """The whole model within this context, on all ranks; those without `keep` only help.

        Args:
            put_back: weights were changed in it: afterwards the shards are theirs.
        """
        reshard(self.model)
        weights = dict(self.hollow.named_parameters())
        for name, shard in self.model.named_parameters():
            full = whole(shard.detach())
            if keep:
                weights[name].data = full.to(self.device, copy=not isinstance(shard, DTensor))
        for buffer, own in zip(self.hollow.buffers(), self.model.buffers(), strict=True):
            buffer.data = own.detach().clone()
        try:
            with torch.enable_grad():
                yield self.hollow
            if put_back:
                self.take_back()
        finally:
            for weight in self.hollow.parameters():
                weight.data = weight.new_empty(0)

    def take_back(self) -> None:
        weights = dict(self.hollow.named_parameters())
        for name, shard in self.model.named_parameters():
            shard.copy_(share_of(weights[name], shard))
        for own, buffer in zip(self.model.buffers(), self.hollow.buffers(), strict=True):
            own.copy_(buffer)


def whole_state(optimizer: Any, *, keep: bool) -> dict[str, Any]:
    """An optimizer's state as one process has it, on all ranks together; in host memory, where it is to be kept."""

    def gather(value: Any) -> Any:
        full = whole(value)
        return full.cpu() if keep and torch.is_tensor(full) else full if keep else None

    state = optimizer.state_dict()
    gathered = {index: {name: gather(v) for name, v in own.items()} for index, own in state["state"].items()}
    return {**state, "state": gathered}


def load_whole_state(optimizer: Any, state: dict[str, Any]) -> None:
    """Take this rank's part of a state that one process has."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for index, values in state["state"].items():
        shared = {name: share_of(v, weights[index]) if torch.is_tensor(v) else v for name, v in values.items()}
        state["state"][index] = shared
    optimizer.load_state_dict(state)
