"""Scalar and step heads: one number per completion (reward), two per step (process reward), one per state (critic).

Heads are transformers' own (`AutoModelForSequenceClassification`, `AutoModelForTokenClassification`) where it has one,
so that what is trained loads everywhere, and those of `headed` elsewhere. The choice of position is always ours: by
construction, never by looking for a pad id.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import transformers
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from strop.errors import ConfigError, SetupError
from strop.model.headed import headed_class
from strop.model.wrappers import base_model, decoder_of
from strop.model.zero3 import whole_models

AUTO = {
    "causal": AutoModelForCausalLM,
    "score": AutoModelForSequenceClassification,
    "step": AutoModelForTokenClassification,
}
NUM_LABELS = {"score": 1, "step": 2}
TASKS = tuple(AUTO)
_QUANTISED = ("is_loaded_in_4bit", "is_loaded_in_8bit", "is_quantized", "quantization_method", "hf_quantizer")
"""What a model with quantised layers says about itself, and PEFT asks it."""


def head_class(config: Any, task: str) -> Any | None:
    """transformers' model class for this config and `task` ("causal", "score", "step"), or None.

    The causal class of a vision-language model is the one that reads images too; that of its text part alone is in no
    mapping, but named in the config of what was saved.
    """
    known = AUTO[task]._model_mapping.get(type(config), None)
    if known is None and task == "causal":
        known = AutoModelForImageTextToText._model_mapping.get(type(config), None) or _named_class(config)
    return known


def _named_class(config: Any) -> Any | None:
    """transformers' causal class of the model that a config says it was saved from, if it takes this very config."""
    name = next(iter(config.architectures or []), "")
    for suffix in ("ForSequenceClassification", "ForTokenClassification"):
        name = name.replace(suffix, "ForCausalLM")
    found = getattr(transformers, name, None) if name.endswith("ForCausalLM") else None
    return found if getattr(found, "config_class", None) is type(config) else None


def class_with_head(config: Any, task: str, causal: Any) -> Any:
    """The class of a model with a head for `task`: transformers' own, or a made one on the class `causal`.

    A made one also for decoders of families whose own classes read a text as encoders do (BERT, BART).
    """
    own = head_class(config, task)
    if own is None or (getattr(config, "is_decoder", False) and own.__name__ not in (config.architectures or [])):
        return headed_class(causal, task)
    return own


def with_head(model: nn.Module, task: str) -> nn.Module:
    """A model with a fresh head on a copy of a causal language model's layers.

    Args:
        model: a causal language model, possibly wrapped; it is left as it is.
        task: "score" for one number per completion or state (reward model, critic), "step" for two classes per step.

    Returns:
        A transformers model that `save_pretrained` and `from_pretrained` know; the head's weights are drawn from the
        config's `initializer_range` with torch's current random state.
    """
    source = base_model(model)
    cls = class_with_head(source.config, task, type(source))
    config = copy.deepcopy(source.config)
    config.num_labels = NUM_LABELS[task]
    decoder = decoder_of(source)
    weight = next(decoder.parameters())
    with torch.device("meta"), whole_models():
        headed = cls(config)
    for name, child in headed.named_children():
        own = getattr(source, name, None)
        if isinstance(own, nn.Module):
            setattr(headed, name, copy.deepcopy(own))
            continue
        child.to_empty(device=weight.device)
        child.to(weight.dtype if weight.is_floating_point() else torch.float32)
        _initialise(child, getattr(config, "initializer_range", 0.02))
    headed.generation_config = None
    for flag in _QUANTISED:
        if hasattr(source, flag):
            setattr(headed, flag, getattr(source, flag))
    return headed.train(model.training)


def _initialise(module: nn.Module, std: float) -> None:
    """Draw weights that were made without values: a norm is 1, not what the memory held before."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=std)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif hasattr(part, "reset_parameters"):
            part.reset_parameters()  # type: ignore[operator]


def scalar_head(model: Any) -> nn.Module | None:
    """The layer that maps (n, H) to one number per row, or None if the model pools in a way of its own."""
    head = getattr(model, "score", None) or getattr(model, "v_head", None)
    if head is not None and getattr(model.config, "num_labels", 1) != 1 and hasattr(model, "score"):
        raise ConfigError(
            f"{type(model).__name__} has a score head with {model.config.num_labels} labels; one number per completion "
            "is needed. Load it with num_labels=1."
        )
    return head


def score_rows(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """One number per hidden state, (n, H) -> (n,) float32 or wider.

    Raises:
        SetupError: the model has no scalar head.
    """
    head = scalar_head(model)
    if head is None:
        raise SetupError(
            f"{type(model).__name__} has no scalar head ('score' or 'v_head'). "
            "Load the model with load_model(..., task='score'), or build one with with_head(model, 'score')."
        )
    values = torch.squeeze_copy(head(hidden), -1)  # not a view: FSDP puts a hook on what a forward returns
    return values.to(torch.promote_types(values.dtype, torch.float32))


def classify_rows(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Two logits per hidden state, (n, H) -> (n, 2) float32 or wider; with the head's dropout when training.

    Raises:
        SetupError: the model has no token-classification head with two labels.
    """
    head = getattr(model, "score", None) or getattr(model, "classifier", None)
    if head is None or getattr(model.config, "num_labels", None) != 2:
        raise SetupError(
            f"{type(model).__name__} has no token-classification head with two labels. "
            "Load the model with load_model(..., task='step'), or build one with with_head(model, 'step')."
        )
    dropout = getattr(model, "dropout", None)
    if isinstance(dropout, nn.Module):
        hidden = dropout(hidden)
    logits = head(hidden)  # (n, 2)
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
