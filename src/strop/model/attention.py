"""`strop_tree`: the attention function that transformers calls while a flat row is scored.

transformers looks the function up by the name in `config._attn_implementation`; a name without a mask function gets
mask None, and keyword arguments of `model(...)` reach the function. So a scoring forward sets the name, passes the
`Segments` along as `strop_segments`, and puts the old name back: outside of scoring the model is as it was.

Gradient checkpointing runs a layer again during backward, when the old name is back. Every attention module seen
therefore carries two hooks that set the name whenever the module is called with segments, and only then.
"""

from __future__ import annotations

import functools
import itertools
import logging
import math
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface

from strop.device import wide_dtype
from strop.errors import SetupError
from strop.model import flash_implementation
from strop.model.attention_cpu import cpu_flash_attention
from strop.model.attention_cuda import cuda_flash_attention, cuda_flash_serves
from strop.model.attention_dense import dense_attention
from strop.model.segments import Segments, Span

logger = logging.getLogger(__name__)

NAME = "strop_tree"
KEYWORD = "strop_segments"


class AttentionUnsupported(SetupError):
    """A model asks its attention for something that a flat row cannot give; `layout="padded"` serves it."""


@torch.compiler.disable
def tree_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    strop_segments: Segments | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    is_causal: bool | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of every stretch of a flat row on what it may see, with transformers' signature.

    (1, Hq, T, D), (1, Hk, T, D), (1, Hk, T, Dv) -> (1, T, Hq, Dv), and None in place of the attention weights.

    Raises:
        AttentionUnsupported: a mask or bias of the model's own, or no causality.
    """
    if strop_segments is None:
        raise AttentionUnsupported(f"{type(module).__name__} was called with {NAME!r} attention but without segments")
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if attention_mask is not None or position_bias is not None or not causal:
        what = "a mask" if attention_mask is not None else "a bias" if position_bias is not None else "both directions"
        raise AttentionUnsupported(
            f"{type(module).__name__} asks its attention for {what}, which a flat row cannot give"
        )
    _carry_hooks(module)
    record_call("attention", sliding_window)

    device = query.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else value.dtype
    query, key, value = (x if x.dtype == dtype else x.to(dtype) for x in (query, key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    fits = sliding_window is None or strop_segments.longest_context <= sliding_window
    plain = fits and softcap is None and s_aux is None and dropout == 0.0
    if plain and (kernel := _kernel(query, value)) is not None:
        return kernel(query, key, value, strop_segments, scale=scale), None
    out = dense_attention(
        query,
        key,
        value,
        strop_segments,
        scale=scale,
        window=None if fits else sliding_window,
        softcap=softcap,
        sinks=s_aux,
        dropout=dropout,
    )
    return out.contiguous(), None  # some models take a view of it


AttentionInterface.register(NAME, tree_attention)


_observers: list[list[tuple[str, int | None]]] = []


def record_call(kind: str, window: int | None = None) -> None:
    """Tell whoever observes that a layer was served: "attention", "convolution" or "state"."""
    for calls in _observers:
        calls.append((kind, window))


@contextmanager
def observed() -> Iterator[list[tuple[str, int | None]]]:
    """What layers call inside the block, in order: its kind and, of attention, the sliding window."""
    calls: list[tuple[str, int | None]] = []
    _observers.append(calls)
    try:
        yield calls
    finally:
        _observers[:] = [other for other in _observers if other is not calls]


def _kernel(query: torch.Tensor, value: torch.Tensor) -> Any:
    """The fast kernel for these tensors, or None."""
    shape = query.device, query.dtype, query.shape[-1], query.shape[1] // value.shape[1]  # query heads to a key
    if _on_cuda(query):
        if not cuda_flash_serves(query, value):
            return None
        kernel, behind = cuda_flash_attention, flash_implementation.active()
        if _kernel_is_right(kernel, *shape, behind):
            return kernel
        if behind is None or not flash_implementation.give_back(behind, "it does not equal the dense attention"):
            return None
    elif query.device.type == "cpu" and query.shape[-1] == value.shape[-1]:
        kernel = cpu_flash_attention
    else:
        return None
    return kernel if _kernel_is_right(kernel, *shape) else None


def _on_cuda(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "cuda"


@functools.cache
def _kernel_is_right(
    kernel: Any, device: torch.device, dtype: torch.dtype, head_size: int, shared: int, behind: str | None = None
) -> bool:
    """Whether the kernel equals the dense path, forward and backward, on a row of its own; asked once per process,
    shape of the heads, and implementation `behind` PyTorch's operators.

    The kernels rest on operators that PyTorch may change without notice. A wrong one costs speed here, not truth. The
    first call may come inside a checkpointed layer, whose hooks on saved tensors and early stop belong to its thread;
    so the question is asked in a thread of its own.
    """
    with ThreadPoolExecutor(max_workers=1) as pool:
        problem = pool.submit(difference_to_dense, kernel, device, dtype, head_size, shared).result()
    if problem:
        logger.warning(
            "the fast attention kernel for %s on %s does not equal the dense one (%s); using the slower dense one",
            dtype,
            device.type,
            problem,
        )
    return not problem


BOUND_HALF, BOUND_WIDE = 4, 16
"""Error that a kernel may have against the dense path on the same inputs, in units of its dtype's precision: where sums
are wider than the dtype, as in half precision, and where they are not."""


_TESTED = (
    *((272, -1), (1, -1), (65, -1)),
    *((40, 0), (17, 0), (9, 4), (3, 5), (21, 5), (13, 4), (30, 1), (1, 1), (24, 1)),
)
"""(length, parent) of each segment: a prompt longer than the blocks that kernels work in and one of one token, a
sequence of its own, branches of one and of many tokens, and one that forks twice."""


def tested_row() -> Segments:
    """The row that kernels are held against the dense path on."""
    lengths, parents = zip(*_TESTED, strict=True)
    return Segments(list(map(Span, itertools.accumulate((0, *lengths)), lengths)), list(parents))


def difference_to_dense(
    kernel: Any, device: torch.device, dtype: torch.dtype, head_size: int = 64, shared: int = 2
) -> str:
    """What is wrong with a kernel, or the empty string.

    Output and gradients are held to a few units of precision in relative Frobenius norm, segment by segment of the row:
    an error in one short branch would drown in the norm of the whole. Both paths see the same rounded inputs; the dense
    one computes in float64, or in float32 on a device that has none.
    """
    row, wide = tested_row(), wide_dtype(device)
    generator = torch.Generator().manual_seed(0)
    heads = ((2 * shared, row.total), (2, row.total), (2, row.total), (row.total, 2 * shared))
    drawn = [torch.randn(1, *sizes, head_size, generator=generator).to(device, dtype) for sizes in heads]
    tensors, weight = drawn[:3], drawn[3]

    def run(attention: Any, dtype: torch.dtype) -> list[torch.Tensor]:
        inputs = [x.to(dtype).requires_grad_() for x in tensors]
        out = attention(*inputs, row, scale=head_size**-0.5)
        gradients = torch.autograd.grad(out, inputs, weight.to(dtype))
        return [out.detach().transpose(1, 2), *gradients]  # (1, H, T, D) each

    try:
        found, right = run(kernel, dtype), run(dense_attention, wide)
    except Exception as caught:  # whatever a changed operator raises
        return f"{type(caught).__name__}: {caught}"
    half = dtype in (torch.float16, torch.bfloat16)
    bound = (BOUND_HALF if half else BOUND_WIDE) * torch.finfo(dtype).eps
    worst, place = 0.0, ""
    for name, a, b in zip(("output", "d query", "d key", "d value"), found, right, strict=True):
        for span in row.spans:
            usual = float(b.norm()) * (span.length / row.total) ** 0.5
            least = usual if span.length == 1 else 0.1 * usual
            if name == "d query" and span.length == 1:  # of a token alone it is 0, and rounding grows with the head
                least *= max(1.0, head_size / 16) ** 0.5
            size = max(float(b[:, :, span.slice].norm()), least)
            error = float((a.to(b) - b)[:, :, span.slice].norm()) / size
            if not error <= worst:
                worst, place = error if error > worst else math.inf, f"{name}, tokens {span.start} on"  # inf: of NaN
    return "" if worst <= bound else f"relative error {worst:.1e} in {place}"


@contextmanager
def tree_attention_on(decoder: nn.Module) -> Iterator[None]:
    """Let `decoder` look up `strop_tree` inside the block, and what it used before afterwards."""
    configs = attention_configs(decoder)
    flash_implementation.ask_for(config._attn_implementation for config in configs)
    with tree_attention_named(configs):
        yield


def attention_configs(module: nn.Module) -> list[Any]:
    """The configs that name the attention of a module's layers."""
    found: list[Any] = [vars(part).get("config") for part in module.modules()]
    return list({id(config): config for config in found if hasattr(config, "_attn_implementation")}.values())


@contextmanager
def tree_attention_named(configs: Iterable[Any]) -> Iterator[None]:
    """The name `strop_tree` in these configs inside the block."""
    before = [(config, config._attn_implementation) for config in configs if config._attn_implementation != NAME]
    try:
        for config, _ in before:
            set_attention(config, NAME)
        yield
    finally:
        for config, name in before:
            set_attention(config, name)


def set_attention(config: Any, name: str | None) -> None:
    # The empty key means this config itself: sub-configs (a vision tower's, say) keep theirs.
    config._attn_implementation = {"": name}


def _carry_hooks(module: nn.Module) -> None:
    if not vars(module).get("_strop_hooked"):
        module._strop_hooked = True  # type: ignore[assignment]
        module.register_forward_pre_hook(_before_attention, with_kwargs=True)
        module.register_forward_hook(_after_attention, always_call=True)


def _before_attention(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
    config: Any = module.config
    if kwargs.get(KEYWORD) is not None and config._attn_implementation != NAME:
        module._strop_name_before = config._attn_implementation
        set_attention(config, NAME)


def _after_attention(module: nn.Module, args: Any, output: Any) -> None:
    if "_strop_name_before" in vars(module):
        set_attention(module.config, vars(module).pop("_strop_name_before"))
