"""Names of a package that are imported on first use: whoever needs one of them does not wait for the others."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from strop.errors import did_you_mean


def on_first_use(
    package: str, homes: Mapping[str, Iterable[str]]
) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """`__all__`, `__getattr__` and `__dir__` of a package; `homes` are its modules with the names that each holds."""
    home_of = {name: home for home, names in homes.items() for name in names}
    known = sorted(home_of)

    def get(name: str) -> Any:
        if name in home_of:
            return getattr(importlib.import_module(f"{package}.{home_of[name]}"), name)
        raise AttributeError(f"module '{package}' has no attribute '{name}'.{did_you_mean(name, known)}")

    return known, get, lambda: known
