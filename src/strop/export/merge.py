"""An adapter merged into a copy of its base, which scores as base and adapter together do.

    W' = W + (lora_alpha / r) B A

computed in float32. The adapter's own folder and base are only read. Where an adapter changes one of two tied weights
(the embedding, or the output layer that shares it), the copy has both, untied: one tensor cannot be the two.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig
from transformers.utils import find_adapter_config_file

from strop.errors import ConfigError
from strop.model import is_peft, load_model


def merged(source: str | Path | nn.Module, *, dtype: torch.dtype | None = None) -> Any:
    """A plain transformers model with the adapter's changes in its weights.

    Args:
        source: a folder of an adapter or a whole model, or a PEFT model that nobody needs any more.
        dtype: of the result; None: as the base was saved. Sums are taken in float32 in any case.

    Raises:
        ConfigError: the base is quantised, or the adapter's kind cannot be merged (prompts, prefixes).
    """
    model: Any = source
    if not isinstance(source, nn.Module):
        model = load_model(source, task=task_of(source), dtype=torch.float32, fresh_head=False)
    saved = saved_dtype(source) if dtype is None else dtype
    if is_peft(model):
        check_mergeable(model)
        model = model.float()
        untie_changed(model)
        model = model.merge_and_unload(safe_merge=True)
    return model.to(saved) if saved is not None else model


def check_mergeable(model: Any) -> None:
    """Refuse what would not be the same model afterwards."""
    if getattr(model.get_base_model(), "quantization_method", None) is not None:
        raise ConfigError(
            "The base of this adapter is quantised, and a sum rounded to its levels is another model. Load the base "
            "without quantisation (the adapter's folder by itself does) and merge that."
        )
    for name, config in model.peft_config.items():
        if config.is_prompt_learning or not hasattr(model.base_model, "merge_and_unload"):
            kind = getattr(config.peft_type, "value", config.peft_type)
            raise ConfigError(
                f"The adapter '{name}' is of the kind {kind}, which adds tokens and changes no weight; it cannot be "
                "merged. Keep it as an adapter."
            )


def untie_changed(model: Any) -> None:
    """Give the output layer a weight of its own where an adapter changes it or the embedding it shares."""
    base = model.get_base_model()
    layer, embedding = base.get_output_embeddings(), base.get_input_embeddings()
    if layer is None or embedding is None:
        return
    head, table = (getattr(module, "base_layer", module) for module in (layer, embedding))
    changed = layer is not head or embedding is not table
    if changed and head.weight is table.weight:
        head.weight = nn.Parameter(head.weight.detach().clone())
        base.config.tie_word_embeddings = False
        base.config.get_text_config().tie_word_embeddings = False


def adapter_settings(source: str | Path) -> dict[str, Any] | None:
    """What the folder or hub id of an adapter says of it; None of a whole model."""
    found = find_adapter_config_file(str(source))
    return None if found is None else json.loads(Path(found).read_text(encoding="utf-8"))


def task_of(source: str | Path) -> str:
    """What a folder's or hub id's head is for: "causal", "score" or "step"."""
    try:
        adapter = adapter_settings(source)
        names = [adapter["task_type"] or ""] if adapter else AutoConfig.from_pretrained(source).architectures or []
    except (OSError, ValueError, KeyError):
        return "causal"  # reading the weights says what is wrong
    tasks = {"SEQ_CLS": "score", "ForSequenceClassification": "score", "TOKEN_CLS": "step"}
    tasks["ForTokenClassification"] = "step"
    return next((task for name in names for kind, task in tasks.items() if name.endswith(kind)), "causal")


def saved_dtype(source: str | Path | nn.Module) -> torch.dtype | None:
    """The dtype that a folder's base was saved in; None where it is not known."""
    if isinstance(source, nn.Module):
        return next(source.parameters()).dtype
    adapter = adapter_settings(source)
    try:
        config: Any = AutoConfig.from_pretrained(adapter["base_model_name_or_path"] if adapter else source)
    except (OSError, ValueError):
        return None
    return config.dtype if isinstance(config.dtype, torch.dtype) else None
