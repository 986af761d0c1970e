"""Decoder layers compiled one by one, for flat rows: `torch_compile`.

Rows are laid out flat, and every micro-batch has another number of tokens. So the number is a symbol of the graph, and
one graph serves all of them. What is compiled is the forward of a layer's class, once for all layers of the class; it
breaks at the attention, whose calls differ from batch to batch. Only scoring goes through it: sampling calls layers
with caches, one token at a time, and each of its shapes would be a graph of its own.

Gradient checkpointing stands around the compiled forward, so that the backward pass runs the same graph again.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from strop.errors import SetupError
from strop.model.attention import KEYWORD, attention_configs, tree_attention_named

Backend = str | Callable[..., Any]


def compile_layers(layers: Sequence[nn.Module], *, backend: Backend = "inductor", mode: str | None = None) -> None:
    """Let these layers compute flat rows through graphs; `plain_layers` undoes it.

    Raises:
        SetupError: the forward of one of them is not its class's; all are left as they were.
    """
    if replaced := next((layer for layer in layers if "forward" in vars(layer)), None):
        raise SetupError(f"something else replaced the forward of {type(replaced).__name__}")
    graphs: dict[Any, Any] = {}
    for layer in layers:
        plain = inspect.unwrap(type(layer).forward)  # without transformers' checkpointing around it
        if plain not in graphs:
            graphs[plain] = torch.compile(plain, backend=backend, mode=mode, dynamic=True)
        layer.forward = functools.partial(_forward, layer, graphs[plain])  # type: ignore[method-assign]


def plain_layers(layers: Sequence[nn.Module]) -> None:
    """Let these layers compute as their class does."""
    for layer in layers:
        vars(layer).pop("forward", None)


def _forward(layer: Any, graph: Any, *args: Any, **kwargs: Any) -> Any:
    if kwargs.get(KEYWORD) is None:
        return type(layer).forward(layer, *args, **kwargs)
    run = functools.partial(_run, layer, graph, **kwargs)
    if layer.gradient_checkpointing and layer.training:
        return layer._gradient_checkpointing_func(run, *args)
    return run(*args)


def _run(layer: nn.Module, graph: Any, *args: Any, **kwargs: Any) -> Any:
    """In the backward pass the name of strop's attention is not there any more, and a graph would be made for the other
    name."""
    configs: Any = vars(layer).get("_strop_configs")
    if configs is None:
        configs = layer._strop_configs = attention_configs(layer)  # type: ignore[assignment]
    with tree_attention_named(configs):
        return graph(layer, *args, **kwargs)
