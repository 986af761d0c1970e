from __future__ import annotations

import gc
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
if not os.path.exists("/dev/nvidiactl") and not os.path.exists("/dev/kfd"):
    os.environ.setdefault("TRITON_INTERPRET", "1")  # kernels for a card run on the CPU; read when they are defined


def pytest_collection_finish() -> None:
    """What was imported lives to the end: the search for garbage, which every run of training begins with, need not
    go through it each time."""
    gc.collect()
    gc.freeze()
