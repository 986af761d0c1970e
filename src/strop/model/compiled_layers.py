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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from strop.errors import SetupError
from strop.model.attention import KEYWORD, NAME, set_attention

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
    with _named(layer):
        return graph(layer, *args, **kwargs)


@contextmanager
def _named(layer: nn.Module) -> Iterator[None]:
    """The name of strop's attention in the configs of a layer: in the backward pass it is not there any more, and a
    graph would be made for the other name."""
    configs = vars(layer).get("_strop_configs")
    if configs is None:
        found = {id(config): config for module in layer.modules() if (config := vars(module).get("config")) is not None}
        configs = layer._strop_configs = list(found.values())  # type: ignore[assignment]
    before = [(config, config._attn_implementation) for config in configs if config._attn_implementation != NAME]
    for config, _ in before:
        set_attention(config, NAME)
    try:
        yield
    finally:
        for config, name in before:
            set_attention(config, name)
