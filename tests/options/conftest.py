from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="package", autouse=True)
def collected() -> Iterator[None]:
    """Every run ends in a collection of garbage; what was there before these tests is left out of it."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
