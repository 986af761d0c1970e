"""What runs along a row, on a flat row: short convolutions, gated delta rules, Mamba 2 scans.

The hybrid layers of transformers leave these to functions of their module, and hand on to them the keyword arguments
of `model(...)`. `teach` wraps the functions: called with `strop_segments` they run along every way from a root to a
leaf, called without they are what they were. A convolution reads the tokens before along the way; a state is forked
where a segment ends, and its children start from it. Both as functions of tensors, so that gradients flow back into
the shared prompt from every completion (transformers' cache, which forks states too, writes in place).
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers.activations import ACT2FN

from strop.device import sent
from strop.model.attention import KEYWORD, record_call
from strop.model.segments import Segments

Step = Callable[[list[torch.Tensor], torch.Tensor | None], tuple[torch.Tensor, torch.Tensor]]
"""Rows (B, L, ...) and the states that they start from -> their outputs (B, L, ...) and the states they end in."""


def teach(decoder: nn.Module) -> None:
    """Wrap the functions that the decoder's layers call; safe to call again."""
    for name in {type(module).__module__ for module in decoder.modules()}:
        namespace = vars(sys.modules[name])
        for function, served in _SERVED.items():
            if function in namespace and not getattr(namespace[function], "strop_served", False):
                namespace[function] = _dispatching(namespace[function], served)


def _dispatching(function: Callable[..., Any], served: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def dispatch(*args: Any, **kwargs: Any) -> Any:
        segments = kwargs.pop(KEYWORD, None)
        return function(*args, **kwargs) if segments is None else served(function, segments, *args, **kwargs)

    dispatch.strop_served = True  # type: ignore[attr-defined]
    return dispatch


def _convolution(
    function: Callable[..., Any],
    segments: Segments,
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    **_: Any,
) -> torch.Tensor:
    """Depthwise causal convolution, (1, D, T) and (D, K) -> (1, D, T)."""
    record_call("convolution")
    x = hidden_states.to(weight.dtype)
    out = x * weight[:, -1:]
    before = functional.pad(x, (0, 1))  # zeros behind the last token: what stands before a root
    for tap, index in enumerate(_tokens_before(segments, weight.shape[1] - 1, x.device), start=2):
        out = out + before[:, :, index] * weight[:, -tap, None]
    if bias is not None:
        out = out + bias[:, None]
    if activation is not None:
        out = ACT2FN[activation](out)
    return out.to(hidden_states.dtype)


def _tokens_before(segments: Segments, steps: int, device: torch.device) -> list[torch.Tensor]:
    """Where the tokens 1, 2, ... `steps` before each token of the row lie along its way, (T,) each; T before a root."""
    key = ("tokens before", steps, device)
    if key not in segments.derived:
        total, ends = segments.total, list[int]()
        previous = torch.arange(-1, total)
        for span, parent in zip(segments.spans, segments.parents, strict=True):
            before = ends[parent] if parent >= 0 else total
            ends.append(span.end - 1 if span.length else before)
            if span.length:
                previous[span.start] = before
        previous = sent(torch.cat([previous[:total], previous.new_tensor([total])]), device)
        found = [torch.arange(total, device=device)]
        for _ in range(steps):
            found.append(previous[found[-1]])
        segments.derived[key] = found[1:]
    return segments.derived[key]


def _gated_delta_rule(
    function: Callable[..., Any],
    segments: Segments,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The chunked rule of (1, T, heads, size) rows; a token with beta 0 and g 0 leaves the state as it is."""
    record_call("state")
    kwargs |= {"output_final_state": True, "cu_seqlens": None}

    def step(rows: list[torch.Tensor], start: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        kwargs["initial_state"] = start
        return function(*rows[:3], g=rows[3], beta=rows[4], **kwargs)

    return _along(segments, [query, key, value, g, beta], step), None


def _scan(
    function: Callable[..., Any],
    segments: Segments,
    hidden_states: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    *,
    dt_bias: torch.Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    return_final_states: bool = False,
    initial_states: None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """Mamba 2's scan of (1, T, heads, size) rows; a token with the time step 0 leaves the state as it is."""
    record_call("state")
    dt = dt if dt_bias is None else dt + dt_bias.to(dt.dtype)
    dt = (functional.softplus(dt) if dt_softplus else dt).clamp(*dt_limit)

    def step(rows: list[torch.Tensor], start: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        x, time, b, c = rows
        return function(x, time, A, b, c, initial_states=start, return_final_states=True, **kwargs)

    return _along(segments, [hidden_states, dt, B, C], step)


def _along(segments: Segments, inputs: list[torch.Tensor], step: Step) -> torch.Tensor:
    """Run a recurrence down the forest, all segments of one depth in a call, (1, T, ...) each -> (1, T, ...)."""
    spans, parents = segments.spans, segments.parents
    outputs: list[Any] = [None] * len(spans)
    states: list[Any] = [None] * len(spans)
    padded = [torch.cat([x[0], x.new_zeros(1, *x.shape[2:])]) for x in inputs]  # a token of zeros behind the last
    for depth in range(max(segments.depths) + 1):
        numbers = [n for n, own in enumerate(segments.depths) if own == depth]
        longest = max(1, *(spans[n].length for n in numbers))
        index = torch.full((len(numbers), longest), segments.total)
        for row, n in enumerate(numbers):
            index[row, : spans[n].length] = torch.arange(spans[n].start, spans[n].end)
        index = sent(index, inputs[0].device)
        above = [parents[n] for n in numbers]
        start = None if above[0] < 0 else torch.stack([states[parent] for parent in above])
        out, final = step([x[index] for x in padded], start)
        for row, n in enumerate(numbers):
            outputs[n], states[n] = out[row, : spans[n].length], final[row]
    return torch.cat(outputs).unsqueeze(0)


def _in_parts(*_: Any, **__: Any) -> None:
    """Kernels that fuse convolution and scan know no tree: None makes the layer take them one by one."""


_SERVED: dict[str, Callable[..., Any]] = {
    "causal_conv1d_fn": _convolution,
    "torch_chunk_gated_delta_rule": _gated_delta_rule,
    "chunk_kimi_delta_attention": _gated_delta_rule,
    "mamba2_chunk_scan": _scan,
    "mamba2_split_conv1d_scan_combined": _in_parts,
}
"""Functions of transformers' hybrid models, and what they are on a flat row."""
