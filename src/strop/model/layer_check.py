"""Whether layers that were made faster still are the layers: a changed layer is held to its own plain form before use.

One layer of each kind is called as the model calls it on a small forest, in the precision of the run: plain, as a copy
in a wide dtype, and changed. Output and gradients (of the states that enter and of every weight that learns) may then
be twice as far from the wide ones as the plain ones are, plus a unit of precision: what rounds in another order passes,
what computes something else does not.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from strop.device import wide_dtype
from strop.model.dropout import evaluating
from strop.model.forest import always
from strop.model.forward import Scoring, input_device, vocab_size
from strop.model.layout import build_batch
from strop.model.select import layout_of
from strop.model.wrappers import base_model, decoder_of
from strop.plain_text import first_line
from strop.records import Example, Want

ALLOWED, UNITS = 2.0, 1.0
"""How many times the plain layer's error the changed one may have, and units of precision on top."""


@dataclass(frozen=True)
class LayerCall:
    """A layer, and the arguments that the model calls it with."""

    layer: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The decoder layers of a transformers model, in order."""

    def outermost(module: nn.Module) -> list[nn.Module]:
        if isinstance(module, GradientCheckpointingLayer):
            return [module]
        return list(itertools.chain.from_iterable(map(outermost, module.children())))

    return outermost(decoder_of(base_model(model)))


def problem_with(
    models: Sequence[nn.Module],
    change: Callable[[], Any],
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> str:
    """Make a change to the layers of these models, and say what is wrong with what they are then; "" if nothing is.

    Args:
        models: transformers models, adapters on them or not, on the device of the run.
        change: alters their layers in place.
        autocast: makes a context with the mixed precision of the run; entered anew for every pass, as it keeps
            copies of weights, which know of gradients or not.
    """
    calls = []
    for model in models:
        with autocast():
            calls += recorded_calls(model)
    if not calls:
        return "the model has no layers that are known as such"
    try:
        plain, right = [measured(call, autocast) for call in calls], [measured(call, None) for call in calls]
        change()
        changed = [measured(call, autocast) for call in calls]
    except Exception as error:  # whatever a compiler, a kernel or foreign layers raise
        return f"{type(error).__name__}: {first_line(error)[:300]}"
    with autocast():
        found = map(worst, calls, changed, plain, right)
        return next((text for text in found if text), "")


def recorded_calls(model: nn.Module) -> list[LayerCall]:
    """How a scoring forward on a small forest calls the first layer of each kind."""
    inner = base_model(model)
    calls: dict[int, LayerCall] = {}
    first: dict[str, nn.Module] = {}
    for layer in layers_of(model):
        first.setdefault(kind_of(layer), layer)

    def keep(layer: nn.Module, args: Any, kwargs: Any) -> None:
        calls.setdefault(id(layer), LayerCall(layer, args, dict(kwargs)))

    trees, layout = tried_trees(vocab_size(inner) or 16), layout_of(model).name  # which calls layers itself
    batch = build_batch(trees, layout, want=Want.HIDDEN, shares=always, device=input_device(inner))
    hooks = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in first.values()]
    try:
        with torch.no_grad(), evaluating(model):
            model(scoring=Scoring(batch, Want.HIDDEN))
    finally:
        for hook in hooks:
            hook.remove()
    return list(calls.values())


def kind_of(layer: nn.Module) -> str:
    """Text that is the same for layers that compute alike on other weights."""
    return f"{layer} {[getattr(module, 'sliding_window', None) for module in layer.modules()]}"


def tried_trees(vocabulary: int) -> list[Example]:
    """A prompt with two completions that fork once more, and another row."""
    ids = [(37 * i + 11) % vocabulary for i in range(160)]
    return [Example(ids[:40], [ids[50:70], ids[50:60] + ids[90:120], ids[120:125]]), Example(ids[5:25], [ids[100:140]])]


def measured(call: LayerCall, autocast: Callable[[], AbstractContextManager[Any]] | None) -> dict[str, torch.Tensor]:
    """Output and gradients of a layer under fixed weights of its output; without a context: of a wide copy."""
    layer, dtype = call.layer, None
    if autocast is None:
        dtype = wide_of(layer)
        layer = copy.deepcopy(layer).to(dtype)
    args, kwargs = (_mapped(each, dtype) for each in (call.args, call.kwargs))
    states = args[0] if args else kwargs["hidden_states"]
    states.requires_grad_()
    learned = {name: weight for name, weight in layer.named_parameters() if weight.requires_grad}
    with evaluating(layer), torch.enable_grad(), (autocast or nullcontext)():
        out = layer(*args, **kwargs)
        out = out[0] if isinstance(out, tuple) else out
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(out.shape, generator=generator).to(out.device, out.dtype)
        gradients = torch.autograd.grad(out, [states, *learned.values()], weight, allow_unused=True)
    named = {"the output": out, **dict(zip(["d states", *(f"d {name}" for name in learned)], gradients, strict=True))}
    return {name: value.detach() for name, value in named.items() if value is not None}


def _mapped(value: Any, dtype: torch.dtype | None) -> Any:
    """Arguments whose tensors are leaves of their own, in a dtype where one is given."""
    if isinstance(value, torch.Tensor):
        return value.detach().to(dtype) if value.is_floating_point() else value
    if isinstance(value, (tuple, list)):
        return type(value)(_mapped(each, dtype) for each in value)
    if isinstance(value, dict):
        return {name: _mapped(each, dtype) for name, each in value.items()}
    return value


def computed_in(layer: nn.Module) -> torch.dtype:
    """The narrowest dtype that a layer computes in, here and now."""
    weights = [weight for weight in layer.parameters() if weight.is_floating_point()]
    device = weights[0].device.type
    dtypes = {weight.dtype for weight in weights}
    if torch.is_autocast_enabled(device):
        dtypes.add(torch.get_autocast_dtype(device))
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)


def wide_of(layer: nn.Module) -> torch.dtype:
    """float32 of a layer whose weights are in half precision, as its copy takes less room; else float64, where the
    device has it."""
    dtype = computed_in(layer)
    return torch.float32 if dtype.itemsize == 2 else wide_dtype(next(layer.parameters()).device)


def worst(
    call: LayerCall, changed: dict[str, torch.Tensor], plain: dict[str, torch.Tensor], right: dict[str, torch.Tensor]
) -> str:
    """The tensor that is furthest beyond its bound, and by how much; "" if none is."""
    unit = torch.finfo(computed_in(call.layer)).eps
    if changed.keys() != right.keys():
        return f"{type(call.layer).__name__}: other weights get a gradient"
    gradients = [value for name, value in right.items() if name != "the output"]
    usual = (sum(float(g.norm()) ** 2 for g in gradients) / max(1, sum(g.numel() for g in gradients))) ** 0.5
    beyond, where = 0.0, ""
    for name, exact in right.items():
        least = 0.1 * usual * exact.numel() ** 0.5 if name != "the output" else 0.0
        size = max(float(exact.norm()), least, torch.finfo(torch.float32).tiny)
        own, other = (float((found[name].to(exact) - exact).norm()) / size for found in (changed, plain))
        excess = own / (ALLOWED * other + UNITS * unit)
        if not excess <= max(beyond, 1.0):
            beyond = excess if excess > 1.0 else float("inf")
            where = f"{type(call.layer).__name__}, {name}: relative error {own:.1e}, and {other:.1e} of the plain layer"
    return where
