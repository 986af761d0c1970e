"""All processes below one, and the memory that they hold together (Linux: read from /proc)."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_KILOBYTE = 1024


def descendants(pid: int) -> list[int]:
    """The processes below one, itself first."""
    found = [pid]
    for each in found:
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{each}/task"):
                found += map(int, Path(f"/proc/{each}/task/{thread}/children").read_text().split())
    return found


def memory_bytes(pids: list[int]) -> int:
    """Resident memory that is no file's, of all of them together."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError, ValueError, IndexError):
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith(("RssAnon:", "RssShmem:")):
                    total += int(line.split()[1]) * _KILOBYTE
    return total
