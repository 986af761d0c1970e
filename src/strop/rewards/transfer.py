"""Can a reward function move to another process, and should it?

A function moves as bytes. Four ways are tried, the first that works is taken:

1. `pickle` by name, where the function lives in a module that the worker can import;
2. `cloudpickle` by value, where it is installed: lambdas, closures, functions of the script itself;
3. `dill` by value (it comes with `datasets`), where cloudpickle is missing;
4. none: the function stays in this process under the watchdog.

A script's own module is never imported in a worker: that would run the script a second time.

Some functions *can* move but should not, because moving changes what they mean: one that writes to a list of the
surrounding script would write to a copy, and one that holds a model or tensors would duplicate it. `stays_home` finds
these from the source and the captured values. It reads the function's own text only; state that is written deeper
down (in functions it calls) is not seen, and then lives in the worker.
"""

from __future__ import annotations

import ast
import functools
import inspect
import io
import pickle
import sys
import textwrap
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

PAYLOAD_LIMIT_BYTES = 32 << 20
_HEAVY_PACKAGES = frozenset({"torch", "transformers", "tensorflow", "jax", "datasets", "vllm"})
_WRITING_METHODS = frozenset(
    {"add", "append", "appendleft", "clear", "discard", "extend", "insert", "pop", "popitem", "popleft", "put"}
    | {"remove", "setdefault", "update", "write"}
)


@dataclass(frozen=True, slots=True)
class Parcel:
    """A function as bytes, and the module whose `loads` turns them back."""

    encoding: str
    payload: bytes


def stays_home(function: Callable[..., Any]) -> str:
    """Why a function should not be moved to a worker although it perhaps could; empty if it may go."""
    plain = _plain_function(function)
    if plain is None:
        return ""
    captured = _captured(plain)
    for name, value in captured.items():
        if _is_torch_object(value):
            return f"it holds a {type(value).__name__} ('{name}')"
    outside = {name for name, value in captured.items() if not isinstance(value, types.ModuleType)}
    if inspect.ismethod(function) or plain is not _unwrapped(function):
        outside.update(list(inspect.signature(plain).parameters)[:1])  # self
    rebound, written = _written_names(plain)
    for name in sorted(rebound | (written & outside)):
        return f"it writes to '{name}', which lives outside it"
    return ""


def parcels(function: Callable[..., Any], limit_bytes: int = PAYLOAD_LIMIT_BYTES) -> Iterator[Parcel]:
    """The ways in which a function can be sent, best first; nothing if it cannot be sent at all."""
    module = sys.modules.get(getattr(_plain_function(function) or function, "__module__", None) or "")
    by_name = _attempt("pickle", pickle.Pickler, function, limit_bytes)
    if by_name is not None and b"__main__" in by_name.payload:
        by_name = None
    if by_name is not None and not (module is not None and _is_heavy(module)):
        yield by_name
        by_name = None
    yield from _by_value(function, module, limit_bytes)
    if by_name is not None:
        yield by_name


def _by_value(function: Callable[..., Any], module: types.ModuleType | None, limit_bytes: int) -> Iterator[Parcel]:
    if find_spec("cloudpickle") is not None:
        import cloudpickle

        listed = module is not None and module.__name__ in cloudpickle.list_registry_pickle_by_value()
        by_value = module is not None and module.__name__ != "__main__" and not listed
        if by_value:
            cloudpickle.register_pickle_by_value(module)
        try:
            parcel = _attempt("cloudpickle", cloudpickle.Pickler, function, limit_bytes)
        finally:
            if by_value:
                cloudpickle.unregister_pickle_by_value(module)
        if parcel is not None:
            yield parcel
    elif find_spec("dill") is not None:
        import dill

        parcel = _attempt("dill", functools.partial(dill.Pickler, recurse=True, byref=False), function, limit_bytes)
        if parcel is not None:
            yield parcel


def _attempt(encoding: str, pickler: Callable[..., Any], function: object, limit_bytes: int) -> Parcel | None:
    file = _BoundedFile(limit_bytes)
    try:
        pickler(file, protocol=4).dump(function)
    except Exception:
        return None
    return Parcel(encoding, file.getvalue())


class _BoundedFile(io.BytesIO):
    def __init__(self, limit_bytes: int) -> None:
        super().__init__()
        self._limit_bytes = limit_bytes

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > self._limit_bytes:
            raise ValueError("too large to be sent")
        return super().write(data)


def _unwrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    while isinstance(function, functools.partial):
        function = function.func
    return function


def _plain_function(function: Callable[..., Any]) -> types.FunctionType | None:
    """The Python function that will run: behind partials, of a bound method, or of an instance's `__call__`."""
    function = _unwrapped(function)
    if isinstance(function, types.FunctionType):
        return function
    method = function if inspect.ismethod(function) else getattr(function, "__call__", None)  # noqa: B004
    inner = getattr(method, "__func__", None)
    return inner if isinstance(inner, types.FunctionType) else None


def _captured(function: types.FunctionType) -> dict[str, Any]:
    """Values of the surrounding functions and of the module that the function's code names."""
    try:
        variables = inspect.getclosurevars(function)
    except (TypeError, ValueError):
        return {}
    return {**variables.globals, **variables.nonlocals}


def _is_torch_object(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, (torch.nn.Module, torch.Tensor))


def _is_heavy(module: types.ModuleType) -> bool:
    """Whether importing the module anew would import one of the large packages, itself or through what it imports.

    Follows the modules that the values of a module's namespace come from; imports inside functions do not count.
    """
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        for value in list(vars(waiting.pop()).values()):
            origin = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
            if not isinstance(origin, str) or origin in seen:
                continue
            seen.add(origin)
            package = origin.partition(".")[0]
            if package in _HEAVY_PACKAGES:
                return True
            found = sys.modules.get(origin)
            if isinstance(found, types.ModuleType) and package not in sys.stdlib_module_names:
                waiting.append(found)
    return False


def _written_names(function: types.FunctionType) -> tuple[set[str], set[str]]:
    """Names that the function's text rebinds (`global x`), and that it writes through (`x.append()`, `x[k] = `)."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError, ValueError):
        return set(), set()
    rebound: set[str] = set()
    written: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Global, ast.Nonlocal)):
            rebound.update(node.names)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in _WRITING_METHODS:
                written.add(_root(node.func.value))
        elif isinstance(node, (ast.Attribute, ast.Subscript)) and isinstance(node.ctx, (ast.Store, ast.Del)):
            written.add(_root(node.value))
    return rebound, written


def _root(node: ast.expr) -> str:
    while isinstance(node, (ast.Attribute, ast.Subscript)):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""
