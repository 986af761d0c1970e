"""DeepSpeed's ZeRO-3 and models in the making: they are whole until strop has prepared them.

Once a run's settings ask for ZeRO-3, transformers cuts the weights of every model that is made from then on. What is
prepared from a model (its reference, its critic, a head, the check of its layout) needs them whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers.integrations import deepspeed as zero


@contextmanager
def whole_models() -> Iterator[None]:
    """In here models are made as by one process, whatever the settings of the run ask for."""
    kept, zero._hf_deepspeed_config_weak_ref = zero._hf_deepspeed_config_weak_ref, None
    try:
        yield
    finally:
        zero._hf_deepspeed_config_weak_ref = kept


@contextmanager
def written_whole(weights: Iterable[nn.Parameter]) -> Iterator[None]:
    """In here weights that ZeRO-3 has cut are whole on every rank, and what is written into them stays; all ranks enter
    it together and write the same."""
    cut = [weight for weight in weights if hasattr(weight, "ds_id")]
    if not cut:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(cut, modifier_rank=0):
        yield


def read_whole(tensor: Any) -> Any:
    """A tensor; of a weight that ZeRO-3 has cut all of it, which every rank asks for together."""
    if not hasattr(tensor, "ds_id") or tensor.ds_status.name == "AVAILABLE":
        return tensor
    import deepspeed

    with deepspeed.zero.GatheredParameters([tensor]):
        return tensor.detach().clone()


def cut_frozen(model: nn.Module, accelerator: Any) -> None:
    """Cut a model that is only read into shards, in place, by the settings that the policy is cut by."""
    import deepspeed

    given = accelerator.state.deepspeed_plugin.deepspeed_config["zero_optimization"]
    own = {name: value for name, value in given.items() if value != "auto" and name != "offload_optimizer"}
    half = {kind: {"enabled": accelerator.mixed_precision == kind} for kind in ("bf16", "fp16")}
    config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": own, **half}
    deepspeed.initialize(model=model, config=config)


def make_whole(model: nn.Module) -> None:
    """Give a model that was made under ZeRO-3 its weights back, on every rank; all ranks call this together."""
    cut = {id(weight): weight for weight in model.parameters() if hasattr(weight, "ds_id")}
    if not cut:
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(cut.values())):
        whole = {key: nn.Parameter(p.detach().clone(), requires_grad=p.requires_grad) for key, p in cut.items()}
    for module in model.modules():
        for name, weight in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if id(weight) in whole:
                setattr(module, name, whole[id(weight)])
