"""A card made of the host's memory, so that code for cards runs where there is none.

Tensors on it say that they are on `cuda`, and every operation on them is done by the CPU on the numbers behind them.
What a card refuses is refused: operands in two places, float64 if it has none, and inside the capture of a graph
everything that makes the host wait. Whatever makes the host wait is counted (`waits`).

A graph is what a real one is: the list of operations of one run through the Python code, with the very tensors they
read and wrote. A capture computes nothing (what it wrote is undone, what it made is filled with NaN); a replay does
the operations again, in place, and knows no Python: a buffer that was put in another's place is not seen. Graphs of one
pool may use each other's memory, so each replay fills what the others made with NaN.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.card import asks

aten = torch.ops.aten

INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
EMPTY = {aten.empty.memory_format, aten.new_empty.default, aten.empty_like.default, aten.empty_strided.default}
CARD = torch.device("cuda", 0)
PRODUCTS = {"linear", "matmul", "__matmul__", "mm", "bmm", "addmm", "baddbmm", "scaled_dot_product_attention"}
WIDE = {
    "exp",
    "log",
    "pow",
    "__pow__",
    "rsqrt",
    "reciprocal",
    "softmax",
    "log_softmax",
    "sum",
    "cumsum",
    "layer_norm",
    "norm",
}
"""What autocast on CUDA does in 16 bits and in 32, of the lists in PyTorch's documentation that models here use."""
CARDS: list[EmulatedCard] = []
"""Those that are there now."""
WIDEST = ("strop.rollout.draw.wide_dtype", "strop.rollout.sampling.wide_dtype")


def each(value: Any, change: Callable[[Any], Any]) -> Any:
    """A value in tuples, lists and dicts, with every leaf changed."""
    kind = type(value)
    if kind is tuple or kind is list:
        return kind([each(x, change) for x in value])
    return {name: each(x, change) for name, x in value.items()} if kind is dict else change(value)


def leaves_of(value: Any) -> list[Any]:
    """The leaves of tuples, lists and dicts."""
    found: list[Any] = []
    each(value, found.append)
    return found


class OnCard(torch.Tensor):
    """A tensor of an emulated card; `near` has its numbers."""

    near: torch.Tensor

    @staticmethod
    def __new__(cls, near: torch.Tensor) -> OnCard:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            near.size(),
            strides=near.stride(),
            storage_offset=near.storage_offset(),
            dtype=near.dtype,
            device="meta",  # torch without CUDA has no guard for its devices; Python is told another one
        )
        made.near = near
        return made

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"OnCard({self.near!r})"

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CARD

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
            return CARDS[-1].indexed(func, *args)
        if torch.is_autocast_enabled("cuda"):
            args, kwargs = CARDS[-1].autocast(func, args, kwargs)
        with torch._C.DisableTorchFunctionSubclass():  # results are what the dispatch makes of them
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} on a tensor of an emulated card that is not there any more")


class Graph:
    """What stands in for `torch.cuda.CUDAGraph`."""

    def __init__(self, card: EmulatedCard) -> None:
        self.card, self.pool = card, None
        self.steps: list[tuple[Any, Any, Any, list[torch.Tensor]]] = []
        self.made: list[torch.Tensor] = []  # in the graph's own memory

    def replay(self) -> None:
        self.card.replay(self)


class EmulatedCard(TorchDispatchMode):
    """See the module's text; use `emulated_card`."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and the question takes longer than the operation

    def __init__(self, has_float64: bool) -> None:
        super().__init__()
        self.device, self.has_float64 = CARD, has_float64
        self.casts: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # of trained weights, which autocast remembers
        self.waits: Counter[str] = Counter()
        self.replays = 0
        self.graphs: list[Graph] = []
        self.capturing: Graph | None = None
        self._indexing = False  # every tensor is the card's
        self._undo: list[tuple[torch.Tensor, torch.Tensor]] = []

    # ---- tensors ----------------------------------------------------------------------------------------------

    def put(self, tensor: torch.Tensor) -> OnCard:
        """A tensor of the host, without copying its numbers."""
        return OnCard(tensor.detach())

    def move(self, model: nn.Module) -> nn.Module:
        """A model's parameters and buffers to the card, in place; what is tied stays tied."""
        moved: dict[int, nn.Parameter] = {}
        for module in model.modules():
            for name, value in module._parameters.items():
                if value is not None:
                    here = moved.setdefault(id(value), nn.Parameter(self.put(value), value.requires_grad))
                    module._parameters[name] = here
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = self.put(buffer)
        return model

    def autocast(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The arguments of an operation as autocast hands them on; a trained weight's cast is remembered."""
        name, dtype = getattr(func, "__name__", ""), torch.get_autocast_dtype("cuda")
        if name in PRODUCTS:
            return each((args, kwargs), lambda x: self._cast(x, dtype))
        if name in WIDE:
            return each((args, kwargs), lambda x: x.float() if _half(x) else x)
        return args, kwargs

    def _cast(self, value: Any, dtype: torch.dtype) -> Any:
        if not isinstance(value, OnCard) or not value.is_floating_point() or value.dtype in (dtype, torch.float64):
            return value
        if id(value) in self.casts:
            return self.casts[id(value)][1]
        cast = value.to(dtype)
        if value.requires_grad and value.is_leaf and torch.is_autocast_cache_enabled():
            self.casts[id(value)] = value, cast
        return cast

    # ---- operations -------------------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is aten.is_pinned.default:
            return hasattr(args[0], "pinned")
        if kwargs.pop("pin_memory", False):
            pinned = func(*args, **kwargs)
            pinned.pinned = True
            return pinned
        if func is aten._fused_sdp_choice.default:
            return 0  # products and a softmax, as nothing else is the same everywhere
        flat = leaves_of((args, kwargs))
        wanted = kwargs.get("device")
        goes_here = wanted is not None and torch.device(wanted).type in ("cuda", "meta")
        here = [x for x in flat if isinstance(x, OnCard)]
        if self._indexing:
            return self._compute(func, args, kwargs)
        if not here and not goes_here:
            return func(*args, **kwargs)
        self._check(func, args, kwargs, flat, goes_here)
        if wanted is not None:
            kwargs["device"] = torch.device("cpu")
        stays = goes_here or (bool(here) and wanted is None)
        return self._run(func, args, kwargs, stays)

    def _check(self, func: Any, args: Any, kwargs: Any, flat: list[Any], goes_here: bool) -> None:
        hosts = [x for x in flat if isinstance(x, torch.Tensor) and not isinstance(x, OnCard) and x.dim() > 0]
        copies = func in (aten._to_copy.default, aten.copy_.default)
        waits = asks(func.overloadpacket, args, kwargs)
        if func in INDEXING:
            masks = [x for x in args[1] if x is not None and (x.dtype == torch.bool or not isinstance(x, OnCard))]
            waits, hosts = bool(masks), [x for x in hosts if all(x is not y for y in args[1])]
        if copies:
            crosses = bool(hosts) or not (goes_here or kwargs.get("device") is None)
            fetched = kwargs.get("non_blocking", False) and all(hasattr(x, "pinned") for x in hosts) and bool(hosts)
            waits, hosts = crosses and not fetched, []
        if hosts:
            raise RuntimeError(f"Expected all tensors to be on the same device, but {func} has some on the host")
        if waits:
            self._wait(func)

    def _run(self, func: Any, args: Any, kwargs: Any, stays: bool) -> Any:
        owners = {id(x.near): x for x in leaves_of((args, kwargs)) if isinstance(x, OnCard)}
        result = self._compute(func, *each((args, kwargs), lambda x: x.near if isinstance(x, OnCard) else x))
        if not stays:
            return result

        def wrapped(near: Any) -> Any:
            if not isinstance(near, torch.Tensor):
                return near
            if near.dtype == torch.float64 and not self.has_float64:
                raise TypeError(f"{func}: this card has no float64")
            return owners[id(near)] if id(near) in owners else OnCard(near)

        return each(result, wrapped)

    def _compute(self, func: Any, args: Any, kwargs: Any) -> Any:
        """An operation on numbers, which a capture takes down."""
        if self.capturing is not None and func._schema.is_mutable:
            self._remember(func, args, kwargs)
        result = func(*args, **kwargs)
        if self.capturing is not None:
            outs = [x for x in leaves_of(result) if isinstance(x, torch.Tensor)]
            self._record(func, args, kwargs, outs)
        return result

    def indexed(self, func: Any, *args: Any) -> Any:
        """`args[0][args[1]]`, or its assignment."""
        parts = args[1] if isinstance(args[1], tuple) else (args[1],)
        asked = [x for x in parts if isinstance(x, (torch.Tensor, list))]
        if any(not isinstance(x, OnCard) or x.dtype == torch.bool or x.dim() == 0 for x in asked):
            self._wait(f"an index {args[1]}")
        if any(isinstance(x, torch.Tensor) and not isinstance(x, OnCard) and x.dim() for x in (args[0], *args[2:])):
            raise RuntimeError("Expected all tensors to be on the same device, but one that is indexed is on the host")
        near = each(args, lambda x: x.near if isinstance(x, OnCard) else x)
        self._indexing = True
        try:
            found = func(*near)
        finally:
            self._indexing = False
        return None if found is None else OnCard(found)

    def _wait(self, what: Any) -> None:
        if self.capturing is not None:
            raise RuntimeError(f"operation not permitted when stream is capturing: {what}")
        self.waits[str(what)] += 1

    # ---- graphs -----------------------------------------------------------------------------------------------

    def _remember(self, func: Any, args: Any, kwargs: Any) -> None:
        for place, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                value = args[place] if place < len(args) else kwargs.get(argument.name)
                if isinstance(value, torch.Tensor):
                    self._undo.append((value, value.clone()))

    def _record(self, func: Any, args: Any, kwargs: Any, outs: list[torch.Tensor]) -> None:
        assert self.capturing is not None
        inputs = {x.untyped_storage().data_ptr() for x in leaves_of((args, kwargs)) if isinstance(x, torch.Tensor)}
        fresh = [x for x in outs if x.untyped_storage().data_ptr() not in inputs or x.numel() == 0]
        if fresh or func._schema.is_mutable:  # else a view
            self.capturing.steps.append((func, args, kwargs, [] if func in EMPTY else fresh))
        self.capturing.made += fresh

    @contextmanager
    def capture(self, graph: Graph, pool: Any = None, stream: Any = None, **_: Any) -> Iterator[None]:
        """What stands in for `torch.cuda.graph`."""
        graph.pool = pool
        self.graphs.append(graph)
        self._spoil(graph)
        self.capturing, self._undo = graph, []
        try:
            yield
        finally:
            self.capturing = None
            for tensor, before in reversed(self._undo):
                tensor.copy_(before)
            spoil(graph.made)

    def replay(self, graph: Graph) -> None:
        self._spoil(graph)
        self.replays += 1
        for func, args, kwargs, fresh in graph.steps:
            again = [x for x in leaves_of(func(*args, **kwargs)) if isinstance(x, torch.Tensor)]
            if fresh:
                for old, new in zip(fresh, again, strict=True):
                    old.copy_(new)

    def _spoil(self, graph: Graph) -> None:
        for other in self.graphs:
            if other is not graph and other.pool == graph.pool:
                spoil(other.made)


def _half(value: Any) -> bool:
    return isinstance(value, OnCard) and value.dtype in (torch.bfloat16, torch.float16)


def spoil(tensors: list[torch.Tensor]) -> None:
    for tensor in tensors:
        if tensor.is_floating_point():
            tensor.fill_(float("nan"))


@contextmanager
def emulated_card(*, has_float64: bool = True) -> Iterator[EmulatedCard]:
    """An emulated card inside the block, behind the names of `torch.cuda` that a rollout uses.

    Without `has_float64` it refuses that dtype, as Apple's do, and what asks for the widest one is told so.
    """
    card = EmulatedCard(has_float64)
    pools = iter(range(1000))
    stream = mock.MagicMock()
    stands_in: dict[str, Any] = {
        "torch.cuda._lazy_init": lambda: None,
        "torch.cuda.amp.common.amp_definitely_not_available": lambda: False,
        "torch.cuda.is_bf16_supported": lambda *_: True,
        "torch.clear_autocast_cache": card.casts.clear,
        "torch.cuda.mem_get_info": lambda *_: (1 << 30, 1 << 31),
        "torch.cuda.memory_reserved": lambda *_: 0,
        "torch.cuda.memory_allocated": lambda *_: 0,
        "torch.cuda.CUDAGraph": lambda: Graph(card),
        "torch.cuda.graph": card.capture,
        "torch.cuda.graph_pool_handle": lambda: next(pools),
        "torch.cuda.Stream": lambda **_: stream,
        "torch.cuda.current_stream": lambda *_: stream,
        "torch.cuda.stream": lambda _: nullcontext(),
    }
    if not has_float64:
        narrow = {name: lambda where: torch.float64 if where.type == "cpu" else torch.float32 for name in WIDEST}
        stands_in |= narrow
    lifts = torch._C._only_lift_cpu_tensors()
    with ExitStack() as stack:
        for name, value in stands_in.items():
            stack.enter_context(mock.patch(name, value))
        stack.callback(torch._C._set_only_lift_cpu_tensors, lifts)
        torch._C._set_only_lift_cpu_tensors(True)  # `torch.tensor(..., device=card)` copies where it is seen
        stack.enter_context(card)
        CARDS.append(card)
        stack.callback(CARDS.pop)
        yield card
