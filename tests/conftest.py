from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest

from tests.support.broken_files import BrokenFile, broken_files

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
if not os.path.exists("/dev/nvidiactl") and not os.path.exists("/dev/kfd"):
    os.environ.setdefault("TRITON_INTERPRET", "1")  # kernels for a card run on the CPU; read when they are defined


@pytest.fixture(scope="module", autouse=True)
def spared() -> Iterator[None]:
    """What was there before a file's tests lives on: the search for garbage, with which every run of training begins,
    need not go through it each time."""
    gc.collect()
    gc.freeze()
    yield


@pytest.fixture(scope="session")
def all_broken_files(tmp_path_factory: pytest.TempPathFactory) -> list[BrokenFile]:
    """Hundreds of broken files, which the rooms read through their own doors."""
    return list(broken_files(tmp_path_factory.mktemp("broken")))
