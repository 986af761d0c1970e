"""Borrowing a model that is being trained: everything a rollout changes on it, and how it is put back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

from strop.errors import SetupError
from strop.model.dropout import evaluating
from strop.model.virtual_tokens import has_virtual_tokens
from strop.model.wrappers import base_model
from strop.rollout.attention_hook import ATTENTION_NAME


def transformers_model(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside adapters and wrappers.

    Raises:
        SetupError: there is none, or its adapter puts learned tokens before the prompt.
    """
    if has_virtual_tokens(model):
        raise SetupError(
            "The adapter puts learned tokens before every prompt, which the caches of rollout engines do not hold: "
            "nothing can be sampled while it is trained. Use LoRA, or a method that learns from rows (SFT, DPO, ...)."
        )
    base = base_model(model)
    if not isinstance(base, PreTrainedModel):
        raise SetupError(
            f"A rollout needs a transformers model (or one inside PEFT or a wrapper); got {type(model).__name__}."
        )
    return base


@contextmanager
def sampling_mode(models: Iterable[nn.Module]) -> Iterator[None]:
    """No gradients, and evaluation mode: dropout off, checkpointing off; each module's own flag is restored."""
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(evaluating(model))
        stack.enter_context(torch.no_grad())
        yield


@contextmanager
def rollout_attention(models: Iterable[nn.Module]) -> Iterator[None]:
    """Let the rollout's attention function answer in `models`, and restore theirs afterwards."""
    with ExitStack() as stack:
        for base in {id(b): b for b in map(transformers_model, models)}.values():
            stack.callback(base.set_attn_implementation, _implementations(base))
            base.set_attn_implementation(ATTENTION_NAME)
        yield


def _implementations(model: PreTrainedModel) -> dict[str, str]:
    """The attention each part of a model uses now, in the form that `set_attn_implementation` takes."""
    config = model.config
    names = {"": config._attn_implementation}
    for part in config.sub_configs:
        if getattr(config, part, None) is not None:
            names[part] = getattr(config, part)._attn_implementation
    return names
