"""What a method's reach comes to in a column: "right", a refusal, what fails, or why it was not run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from strop.methods.registry import METHODS

VERBS = [method.verb for method in METHODS]
RIGHT = "right"
BOUND, BOUND_FLOAT32 = 1e-9, 1e-4
ABSENT = "not run here: no Python with {} was named by {}"
Found = dict[str, str]
"""Verb -> "right", a refusal, what fails, or why it was not run."""


def attempt(work: Callable[[], Any]) -> Any:
    """What the work gives, or the first words of what it raises."""
    try:
        return work()
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def close(gaps: Mapping[str, float], bound: float) -> str:
    gap = max(gaps["tensors"], gaps["steps"])
    return RIGHT if gap <= bound else f"fails: gradients or weights differ by {gap:.0e}"
