"""Rotary positions whose factors depend on the length of the row (`longrope`, `dynamic`): every row as if alone.

transformers takes the length from the largest position of the call, so a row's log-probabilities would depend on
its neighbours; `dynamic` also remembers the longest row that it ever saw. Here the factors of each row of a padded
batch come from that row alone, its last token included, on a rotary module that remembers nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from strop.records import Batch

LENGTH_DEPENDENT = ("dynamic", "longrope")


def rope_parts(config: Any) -> list[dict[str, Any]]:
    """The fields of a config's rotary positions: one set for all layers, or one for each kind of layer."""
    rope = getattr(config, "rope_parameters", None) or {}
    return [part for part in (rope, *rope.values()) if isinstance(part, dict) and part]


def longest_plain_row(config: Any) -> int | None:
    """Up to how many tokens a row's rotary factors are the same for every length; None where they always are."""
    limits = [
        part["original_max_position_embeddings"] if part["rope_type"] == "longrope" else config.max_position_embeddings
        for part in rope_parts(config)
        if part.get("rope_type") in LENGTH_DEPENDENT
    ]
    return min(limits, default=None)


@contextmanager
def rows_alone(decoder: nn.Module, batch: Batch) -> Iterator[None]:
    """Inside the block every row of the batch gets the rotary factors of its own length."""
    lengths = None
    if batch.layout == "padded":
        lengths = [len(e.prompt_ids) + len(ids) for e in batch.examples for ids in e.completions]
    with ExitStack() as stack:
        for module in decoder.modules():
            if _depends_on_length(module):
                stack.callback(_put_back, module, vars(module).get("forward"))
                module.forward = functools.partial(_factors, module, module.forward, lengths)
        yield


def forget_lengths(model: nn.Module) -> None:
    """Let `dynamic` rotary positions start anew, as if no row had been seen."""
    for module in model.modules():
        if _depends_on_length(module):
            _forget(module)


def _depends_on_length(module: nn.Module) -> bool:
    kinds: Any = vars(module).get("rope_type")
    kinds = kinds.values() if isinstance(kinds, dict) else [kinds]
    return any(kind in LENGTH_DEPENDENT for kind in kinds)


def _factors(
    module: Any, forward: Any, lengths: list[int] | None, x: Any, position_ids: Any, *rest: Any, **kw: Any
) -> Any:
    """cos and sin (or one complex tensor), (S, T, D), from rows of the given lengths; None: all rows are short."""
    if lengths is None:
        _forget(module)
        return forward(x, position_ids, *rest, **kw)
    rows = []
    for length, own in zip(lengths, position_ids.expand(len(lengths), -1), strict=True):
        _forget(module)
        whole = forward(x[:1], torch.arange(length, device=own.device)[None], *rest, **kw)  # of (1, length, D)
        at = own.clamp(max=length - 1)  # padding takes the last token's
        rows.append([part[:, at] for part in (whole if isinstance(whole, tuple) else (whole,))])
    found = tuple(torch.cat(parts) for parts in zip(*rows, strict=True))
    return found if len(found) > 1 else found[0]


def _forget(module: Any) -> None:
    kinds = module.rope_type if isinstance(module.rope_type, dict) else {"": module.rope_type}
    for layer, kind in kinds.items():
        if kind == "dynamic":
            prefix = f"{layer}_" if layer else ""
            start = getattr(module, f"{prefix}original_inv_freq").to(getattr(module, f"{prefix}inv_freq").device)
            module.register_buffer(f"{prefix}inv_freq", start, persistent=False)
            setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)


def _put_back(module: nn.Module, before: Any) -> None:
    if before is None:
        del module.forward
    else:
        module.forward = before
