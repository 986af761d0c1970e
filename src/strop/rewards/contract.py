"""What a reward function may ask for, and what it may give back.

A reward function is called with keywords and answers with one number (or None, which abstains) per completion:

    def reward(prompts, completions, completion_ids, **columns) -> list[float | None]

It is given only what its signature names; `**kwargs` is given everything. Whatever comes back is read here, once,
for functions that run in this process and for those in a worker: a list, a tuple or a one-dimensional array of
finite numbers and Nones, one per row. Anything else becomes words about what was wrong and where.
"""

from __future__ import annotations

import functools
import inspect
import math
import numbers
import reprlib
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import takewhile
from typing import Any

RewardFunction = Callable[..., Any]
"""A sync or async callable that returns one float or None per completion."""

HOOKS = ("log_metric", "log_extra")
"""Arguments that are made at the place of the call, because they collect what the function pushes."""

OFFERED = ("prompts", "completions", "completion_ids", "trainer_state", "environments", *HOOKS)
"""Names of the arguments that do not come from the rows' columns."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a call, or one row of it, gave no number."""

    kind: str  # "exception", "value", "timeout", "death", "transfer" or "setup"
    text: str  # what happened, without the name of the function


@dataclass(slots=True)
class Outcome:
    """What one call of one reward gave: a number, None or a `Failure` per row, or one failure for the whole call."""

    values: list[float | None] = field(default_factory=list)  # (n_rows,) None where abstained or failed
    failed: dict[int, Failure] = field(default_factory=dict)  # row -> why it has no number
    failure: Failure | None = None  # the whole call failed; `values` is empty
    metrics: list[tuple[str, float]] = field(default_factory=list)  # pushed by log_metric, in order
    extras: dict[str, list[Any]] = field(default_factory=dict)  # pushed by log_extra: name -> (n_rows,)


@dataclass(frozen=True, slots=True)
class Accepts:
    """The arguments that a callable can take, read from its signature."""

    names: tuple[str, ...]  # every parameter that can be given, in order
    positional: tuple[str, ...]  # those that can be given by position only
    required: tuple[str, ...]  # those without a default
    everything: bool  # has **kwargs
    bound: frozenset[str] = frozenset()  # what a partial has fixed, which nothing on offer replaces

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Accepts:
        """Read a signature; a callable without one (some C functions) is taken to accept everything."""
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):
            return cls((), (), (), True)
        bound = frozenset(function.keywords) if isinstance(function, functools.partial) else frozenset()
        kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        fixed = [p for p in parameters if p.kind not in kinds and p.name not in bound]
        return cls(
            names=tuple(p.name for p in fixed),
            positional=tuple(p.name for p in fixed if p.kind is p.POSITIONAL_ONLY),
            required=tuple(p.name for p in fixed if p.default is p.empty),
            everything=any(p.kind is p.VAR_KEYWORD for p in parameters),
            bound=bound,
        )

    def wants(self, name: str) -> bool:
        """Whether an argument of this name would be passed on."""
        return name not in self.bound and (self.everything or name in self.names)

    def missing(self, offered: Iterable[str]) -> list[str]:
        """Required parameters that nothing on offer can fill."""
        offered = set(offered)
        return [name for name in self.required if name not in offered]

    def call(self, function: Callable[..., Any], offered: Mapping[str, Any]) -> Any:
        """Call with what the signature names, out of what is on offer."""
        args = [offered[name] for name in takewhile(offered.__contains__, self.positional)]
        kwargs = {n: v for n, v in offered.items() if n not in self.positional and self.wants(n)}
        return function(*args, **kwargs)


def read_values(returned: Any, n_rows: int) -> Outcome:
    """Turn what a function returned into one number or None per row.

    Args:
        returned: a list, a tuple, or anything one-dimensional with `tolist()` (numpy, torch, pandas).
        n_rows: how many values there must be.

    Returns:
        An `Outcome` whose `failed` names the rows that hold no finite number, or whose `failure` says why the whole
        answer cannot be used. A list of the wrong length is never stretched to fit.
    """
    wanted = f"a list with {n_rows} numbers (or None to abstain), one per completion"
    if hasattr(returned, "tolist") and hasattr(returned, "ndim"):
        if returned.ndim != 1:
            shape = tuple(getattr(returned, "shape", ()))
            return _refused(f"it returned an array of shape {shape} where {wanted}, was expected")
        returned = returned.tolist()
    if not isinstance(returned, (list, tuple)):
        return _refused(f"it returned {describe(returned)} where {wanted}, was expected")
    if len(returned) != n_rows:
        return _refused(f"it returned {len(returned)} values where {wanted}, was expected")
    outcome = Outcome(values=[None] * n_rows)
    for row, value in enumerate(returned):
        number, wrong = read_number(value)
        outcome.values[row] = number
        if wrong:
            outcome.failed[row] = Failure("value", wrong)
    return outcome


def describe(value: Any) -> str:
    """A short, safe description of a value: its type and the beginning of what it prints as."""
    if value is None:
        return "None"
    try:
        shown = reprlib.repr(value)
    except Exception:
        shown = "(cannot be printed)"
    return f"a {type(value).__name__}: {shown[:120]}"


def describe_exception(error: BaseException) -> str:
    """One line: type and message of an exception, and the place in the user's code that raised it."""
    try:
        message = str(error).strip()
    except Exception:
        message = "(its message cannot be printed)"
    where = ""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/strop/rewards/" not in f.filename]
    if frames:
        where = f" ({frames[-1].filename}, line {frames[-1].lineno}, in {frames[-1].name})"
    return f"{type(error).__name__}: {message[:500]}{where}" if message else f"{type(error).__name__}{where}"


def _refused(text: str) -> Outcome:
    return Outcome(failure=Failure("value", text))


def read_number(value: Any) -> tuple[float | None, str]:
    """A reward as a finite float, or None and what is wrong with it; None that was given has nothing wrong with it."""
    if value is None:
        return None, ""
    if hasattr(value, "item") and not isinstance(value, (int, float)):
        try:
            value = value.item()
        except Exception:
            return None, f"it returned {describe(value)}, which is not one number"
    if not isinstance(value, (numbers.Real, Decimal)):
        return None, f"it returned {describe(value)}, which is not a number"
    try:
        number = float(value)
    except (OverflowError, ValueError):
        return None, f"it returned {describe(value)}, which does not fit a float"
    if not math.isfinite(number):
        return None, f"it returned {number}, which is not finite; return None to abstain"
    return number, ""
