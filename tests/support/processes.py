"""Tests in processes of their own: several ranks over gloo, and one that is killed at a chosen moment.

Importing torch and transformers takes seconds, so processes are forked from a server that has imported them once and
has done nothing else. The work is a function of an importable module; what it returns comes back through a file.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from tests.support.ports import reserved_port

PRELOADED = ("torch", "torch.distributed", "strop.testing.cases", "strop.testing.rollouts")
_context: Any = None


def start(work: Callable[..., Any], *args: Any, environment: dict[str, str] | None = None) -> BaseProcess:
    """Start `work(*args)` in a process of its own."""
    process = _server().Process(target=_prepared, args=(work, args, environment or {}), daemon=True)
    process.start()
    return process


def run_ranks(work: Callable[..., Any], world_size: int, folder: Path, *args: Any, seconds: float = 300) -> list[Any]:
    """What `work(*args)` returns on each of `world_size` ranks of one gloo group; tensors and plain values.

    Raises:
        RuntimeError: a rank failed (with its traceback) or did not finish in time; the others are ended.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with reserved_port() as port:
        shared = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        ranks = []
        for rank in range(world_size):
            environment = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            ranks.append(start(_rank, work, args, folder / f"rank-{rank}", environment=environment))
        for rank, process in enumerate(ranks):
            process.join(seconds)
            if process.exitcode != 0:
                for other in ranks:
                    other.kill()
                failure = folder / f"rank-{rank}.error"
                text = failure.read_text() if failure.is_file() else f"exit code {process.exitcode} (None: out of time)"
                raise RuntimeError(f"rank {rank} of {world_size}: {text}")
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=False) for rank in range(world_size)]


def _rank(work: Callable[..., Any], args: tuple[Any, ...], place: Path) -> None:
    try:
        torch.save(work(*args), place.with_suffix(".pt"))
    except BaseException:
        place.with_suffix(".error").write_text(traceback.format_exc())
        raise
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _prepared(work: Callable[..., Any], args: tuple[Any, ...], environment: dict[str, str]) -> None:
    gc.freeze()  # what the server imported is no garbage
    os.environ.update(environment)
    torch.set_num_threads(1)
    work(*args)


def _server() -> Any:
    """The context whose server has imported `PRELOADED`; started on first use."""
    global _context
    if _context is None:
        root = Path(__file__).resolve().parents[2]
        given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([str(root / "src"), str(root), *given]))
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        _context = multiprocessing.get_context("forkserver" if sys.platform != "win32" else "spawn")
        if hasattr(_context, "set_forkserver_preload"):
            _context.set_forkserver_preload(list(PRELOADED))
    return _context
