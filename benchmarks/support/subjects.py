"""What is measured: a name for every subject, and the function that measures it into a folder."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.support.architecture import measure
from benchmarks.support.combinations import combinations
from benchmarks.support.configs import ARCHITECTURES
from benchmarks.support.reach import reaches

Subjects = dict[str, Callable[[Path], dict[str, Any]]]


def subjects() -> Subjects:
    """Every architecture, then every combination, then how far the methods reach."""
    return {**{arch: partial(measure, arch) for arch in ARCHITECTURES}, **combinations(), **reaches()}
