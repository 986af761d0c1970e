"""A card played on the CPU: which tensors would lie on it, and where the host would wait for it.

A step runs as it is, on the CPU, and every tensor is kept account of: it is on the card, or it is the host's. The
card's are the weights, the optimizer's moments, what was sent to `CARD`, and whatever is computed of any of these. The
host's are all others: made of Python's numbers, read from a file, fetched. `CARD` is a CPU with an index, which torch
takes for the CPU and which is unlike it; code that asks a tensor of the card for its device is told `CARD`. So code
under test must name the device it sends to, as it must on a machine that has one, and a tensor that is left behind
meets the card's: that is a fault of its own (`mixed`).

What makes the host wait, with PyTorch's kernels for CUDA:

* a number that is read (`item`, `float`, `bool`, `tolist`), a tensor that is fetched (`cpu`, `numpy`, a blocking copy);
* an operator whose result has a size that the data decide: `nonzero`, boolean indices, `unique`, `bincount`,
  `masked_select`, `repeat_interleave` without `output_size`, `equal`;
* a blocking copy to the card: PyTorch puts a stream's synchronisation behind every copy that is not `non_blocking`, so
  `torch.tensor(..., device=card)` waits for all that was asked of the card before.

Not seen: what kernels for CUDA do otherwise than those of the CPU, and what a branch on `device.type` leaves out.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from transformers import TrainerCallback, TrainingArguments

import strop.device

CARD = torch.device("cpu", 0)
"""Where the card's tensors are."""
aten = torch.ops.aten
WAITS = {
    aten._local_scalar_dense, aten.nonzero, aten.nonzero_numpy, aten.masked_select, aten._unique, aten._unique2,
    aten.unique_dim, aten.unique_consecutive, aten.unique_dim_consecutive, aten.bincount, aten.equal, aten.histc,
}  # fmt: skip
UNORDERED = {aten.histc, aten.put_, aten.kthvalue}
"""Operators that raise on CUDA where deterministic algorithms are asked for; float `cumsum` too."""
FETCHES = {torch.Tensor.cpu, torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.__array__}
MAKES = {torch.tensor, torch.as_tensor, torch.asarray}


@dataclass
class Found:
    """Places in the code, with what was found there."""

    waits: list[str] = field(default_factory=list)
    mixed: list[str] = field(default_factory=list)  # an operator was given tensors of both sides
    lacking: list[str] = field(default_factory=list)  # a type that the card lacks
    unordered: list[str] = field(default_factory=list)  # refused in deterministic mode


class Card:
    """Within `with card:` the account is kept; `found` says what came of it.

    Args:
        tensors: those that are on the card to begin with.
        float64: whether the card has that type.
    """

    def __init__(self, tensors: Iterable[torch.Tensor] = (), *, float64: bool = True) -> None:
        self.float64, self.found = float64, Found()
        self._storages: dict[int, torch.UntypedStorage] = {}  # of the card, by identity; held, so that they stay theirs
        self._modes = (_Operators(self), _Calls(self))
        for tensor in tensors:
            self.take(tensor)

    def __enter__(self) -> Card:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)

    def take(self, tensor: torch.Tensor) -> None:
        """From now on a tensor is on the card."""
        storage = tensor.untyped_storage()
        self._storages[id(storage)] = storage
        if tensor.dtype == torch.float64 and not self.float64:
            self.found.lacking.append(f"{place()}: {tuple(tensor.shape)}")

    def has(self, tensor: torch.Tensor) -> bool:
        return id(tensor.untyped_storage()) in self._storages


class _Operators(TorchDispatchMode):
    """Operators as the backend gets them."""

    def __init__(self, card: Card) -> None:
        super().__init__()
        self.card = card

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = tensors(args, kwargs)
        on_card = [tensor for tensor in given if self.card.has(tensor)]
        if on_card:
            self._look(func, given, on_card, args, kwargs)
        result = func(*args, **kwargs)
        if on_card or kwargs.get("device") == CARD:
            known = {id(tensor.untyped_storage()) for tensor in given}
            for tensor in tensors(result):
                if id(tensor.untyped_storage()) not in known:
                    self.card.take(tensor)
        return result

    def _look(self, func: Any, given: Any, on_card: Any, args: Any, kwargs: Any) -> None:
        name, card = func.overloadpacket, self.card
        own = [tensor for tensor in given if not card.has(tensor) and tensor.dim()]
        indices = [i for i in tree_leaves(args[1]) if isinstance(i, torch.Tensor)] if name in INDEXING else []
        chosen = any(index.dtype in (torch.bool, torch.uint8) for index in indices)
        fills = name is not aten.index and indices and args[2].numel() == 1 and not card.has(args[2])
        if asks(name, args, kwargs) or (chosen and not fills):
            card.found.waits.append(f"{place()}: {name}")
        elif name is aten.copy_:
            if (
                card.has(args[0]) != card.has(args[1])
                and not (len(args) > 2 and args[2])
                and not kwargs.get("non_blocking")
            ):
                card.found.waits.append(f"{place()}: copy")
        elif any(not card.has(index) for index in indices):
            card.found.waits.append(f"{place()}: an index is sent")
        elif own:
            card.found.mixed.append(f"{place()}: {name} of {[tuple(tensor.shape) for tensor in own]}")
        floats = on_card[0].is_floating_point()
        if name in UNORDERED or (name is aten.cumsum and floats):
            card.found.unordered.append(f"{place()}: {name}")


INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}


class _Calls(TorchFunctionMode):
    """Calls as Python makes them: what is done with devices never reaches an operator on a CPU."""

    def __init__(self, card: Card) -> None:
        super().__init__()
        self.card = card

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, card = kwargs or {}, self.card
        if func is torch.Tensor.backward:  # the functions of the pass are to be seen too
            with self:
                return torch.autograd.backward(*args, **{k: v for k, v in kwargs.items() if k != "gradient"})
        if getattr(func, "__self__", None) is torch.Tensor.device:
            return CARD if card.has(args[0]) else func(*args, **kwargs)
        if func in FETCHES and card.has(args[0]):
            card.found.waits.append(f"{place()}: {func.__name__}")
            found = func(*args, **kwargs)
            return _apart(found) if isinstance(found, torch.Tensor) else found
        if func is torch.Tensor.new_tensor and card.has(args[0]):
            card.found.waits.append(f"{place()}: new_tensor")
        result = func(*args, **kwargs)
        if func is torch.Tensor.to:
            return self._moved(args, kwargs, result)
        if (
            func in MAKES
            and kwargs.get("device") == CARD
            and not (isinstance(args[0], torch.Tensor) and card.has(args[0]))
        ):
            card.found.waits.append(f"{place()}: {func.__name__}")
            return self._on_card(result)
        return result

    def _moved(self, args: Any, kwargs: Any, result: torch.Tensor) -> torch.Tensor:
        """What `to` gave, on the side that it was asked to be on; a copy, as between devices it would be."""
        source, card = args[0], self.card
        named = [
            value for value in (*args[1:], *kwargs.values()) if isinstance(value, (str, torch.device, torch.Tensor))
        ]
        if not named:
            return result
        target = named[0]
        there = card.has(target) if isinstance(target, torch.Tensor) else torch.device(target) == CARD
        if there == card.has(source) or (not there and called_by_torch()):
            return result  # torch's own code has devices from C++, which knows the CPU only
        if not (kwargs.get("non_blocking") or any(value is True for value in args[1:])):
            card.found.waits.append(f"{place()}: to")
        return self._on_card(result) if there else _apart(result)

    def _on_card(self, result: torch.Tensor) -> torch.Tensor:
        result = _apart(result)
        self.card.take(result)
        return result


def _apart(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in memory of its own, which nobody takes for the card's yet."""
    with _disable_current_modes():
        return tensor.clone()


def asks(operator: Any, args: Any, kwargs: Any) -> bool:
    """Whether the host needs the answer of an operator, or its shape, before it can go on."""
    unsized = operator is aten.repeat_interleave and kwargs.get("output_size") is None and len(args) < 2
    return unsized or operator in WAITS


def tensors(*values: Any) -> list[torch.Tensor]:
    """The tensors with memory within nested containers."""
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor) and leaf.layout is torch.strided]


def called_by_torch() -> bool:
    """Whether the call that is looked at was made by code of torch."""
    frames = (frame.filename for frame in reversed(traceback.extract_stack(limit=12)))
    names = (name for name in frames if not name.endswith(("support/card.py", "torch/overrides.py")))
    return "/torch/" in next(names)


def place() -> str:
    """The innermost line of code that is neither torch's nor a test's."""
    for frame in reversed(traceback.extract_stack(limit=60)):
        name = frame.filename
        if "/torch/" not in name and "/tests/" not in name:
            return f"{'/'.join(name.split('/')[-2:])}:{frame.lineno} {frame.line}"
    return "unknown"


@contextmanager
def played(*, float64: bool = True) -> Iterator[None]:
    """Within this context the settings of every run name `CARD` as their device, and strop takes it for one: copies go
    on beside what is computed, and there may be no float64."""
    patch = pytest.MonkeyPatch()
    aside, has = strop.device.copies_aside, strop.device.has_float64
    device = vars(TrainingArguments)["device"]
    patch.setattr(TrainingArguments, "device", property(lambda self: (device.fget(self), CARD)[1]))
    patch.setattr(strop.device, "copies_aside", lambda device: device == CARD or aside(device))
    patch.setattr(strop.device, "has_float64", lambda device: (float64 or device != CARD) and has(device))
    try:
        yield
    finally:
        patch.undo()


class Traced(TrainerCallback):
    """Keeps the account of the optimizer steps of a run, each from its rows to its optimizer step; what makes rows of
    prompts (sampling, rewards) is left out. `steps` has what was found, by the number of the step."""

    def __init__(self, trainer: Any, *, float64: bool = True) -> None:
        self.trainer, self.card = trainer, Card(float64=float64)
        self.steps: dict[int, Found] = {}
        self.inside = False
        self._prepare = trainer.prepare_step
        trainer.prepare_step = self.prepare

    def prepare(self, rows: Any) -> Any:
        if not self.inside:
            return self._prepare(rows)
        self.card.__exit__(None, None, None)
        try:
            return self._prepare(rows)
        finally:
            self.card.__enter__()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for tensor in on_card(self.trainer):
            self.card.take(tensor)
        self.card.found = self.steps[state.global_step + 1] = Found()
        self.inside = True
        self.card.__enter__()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.inside:
            self.card.__exit__(None, None, None)
            self.inside = False


def on_card(trainer: Any) -> Iterator[torch.Tensor]:
    """What a run has on its card before a step: models, moments of the optimizer, the parent's sum of losses."""
    models = [trainer.model, getattr(trainer.reference, "model", None), getattr(trainer, "teacher", None)]
    for model in models:
        if model is not None:
            yield from model.parameters()
            yield from model.buffers()
    fused = any(group.get("fused") for group in trainer.optimizer.param_groups)
    yield from (t for state in trainer.optimizer.state.values() for t in tensors(state) if fused or t.dim())
    yield trainer._tr_loss
