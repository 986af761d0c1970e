"""Memory that one step frees is kept for the next one, where training runs on a CPU under glibc.

Activations of a step are tens of megabytes each. glibc gives such blocks back to the system as they are freed and asks
for them again a moment later, and every page is then cleared anew: up to a tenth of a step's time. While training
runs, freed blocks therefore stay with the process; afterwards they go back.
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

from transformers import TrainerCallback

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
KEEP = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1, M_TOP_PAD: 64 << 20}  # -1: at no size; 2 GiB free are common
DEFAULT = {M_MMAP_MAX: 65536, M_TRIM_THRESHOLD: 128 << 10, M_TOP_PAD: 128 << 10}


class KeptHeap(TrainerCallback):
    """Sets glibc's thresholds for the time of training. Whoever set MALLOC_* or GLIBC_TUNABLES has chosen already."""

    def __init__(self) -> None:
        chosen = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
        libc = ctypes.CDLL(None) if sys.platform == "linux" and not chosen else None
        self.libc: Any = libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._set(KEEP)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._set(DEFAULT)
        if self.libc is not None:
            self.libc.malloc_trim(0)

    def _set(self, thresholds: dict[int, int]) -> None:
        if self.libc is not None:
            for parameter, value in thresholds.items():
                self.libc.mallopt(parameter, value)
