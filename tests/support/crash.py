"""Runs that are killed, signalled, or refused disk space, and what is left of them.

`train_tiny` is the run: short, on the CPU, with a checkpoint at every step; made for a process of its own
(`tests.support.processes.start`). `Faults` makes the k-th write of a save fail.
"""

from __future__ import annotations

import builtins
import errno
import hashlib
import io
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import safetensors.torch
import torch
from transformers import TrainerCallback

from strop.engine.checkpoint import newest_valid
from strop.testing.cases import make_trainer, rows_for
from strop.watch.stop_signals import SIGNALS

DONE = "done"


def tiny_run(folder: str, verb: str = "dpo", *, epochs: int = 4, **settings: Any) -> Any:
    """A trainer for a run of `2 * epochs` steps with a checkpoint at each."""
    return make_trainer(
        verb,
        folder,
        rows=rows_for(verb, 8),
        dtype=torch.float32,
        per_device_train_batch_size=4,
        num_train_epochs=epochs,
        **{"save_strategy": "steps", "save_steps": 1, "lr_scheduler_type": "linear", **settings},
    )


def train_tiny(
    folder: str, verb: str = "dpo", settings: dict[str, Any] | None = None, *callbacks: TrainerCallback
) -> None:
    """Train in `folder`, from its newest checkpoint if it has one; what is printed goes to a file there.

    When the run is over, `done` holds the hash of its weights.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    with (Path(folder) / "printed").open("a", buffering=1) as printed:
        sys.stdout = printed
        trainer = tiny_run(folder, verb, **(settings or {}))
        for callback in callbacks:
            trainer.add_callback(callback)
        trainer.train(resume_from_checkpoint=newest_valid(folder)[0] is not None or None)
        (Path(folder) / DONE).write_text(fingerprint(trainer.model))


class UntilSignalled(TrainerCallback):
    """The second step does not go on before a signal has come: however late, it comes in the middle of the run."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            self.before = [signal.getsignal(number) for number in SIGNALS]
        deadline = time.monotonic() + 100
        while state.global_step == 1 and self.before == [signal.getsignal(number) for number in SIGNALS]:
            assert time.monotonic() < deadline, "no signal came"
            time.sleep(0.01)


def train_until_signalled(folder: str, settings: dict[str, Any]) -> None:
    """`train_tiny` that waits for a signal in its second step."""
    train_tiny(folder, "dpo", settings, UntilSignalled())


def fingerprint(model: torch.nn.Module) -> str:
    """Hash of all weights."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class LimitFileSize(TrainerCallback):
    """After `step` steps no file may grow beyond `size` bytes: a full disk, as far as writing goes."""

    def __init__(self, step: int, size: int) -> None:
        self.step, self.size = step, size

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        import resource

        if state.global_step == self.step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def train_on_small_disk(folder: str, size: int) -> None:
    """Train until the disk is full at the second checkpoint; `error` holds what was raised: its class and message."""
    trainer = tiny_run(folder)
    trainer.add_callback(LimitFileSize(2, size))
    try:
        trainer.train()
    except Exception as error:
        (Path(folder) / "error").write_text(f"{type(error).__name__}: {error}")


WRITERS: tuple[tuple[Any, str], ...] = (
    (builtins, "open"),
    (io, "open"),
    (os, "open"),
    (os, "replace"),
    (os, "rename"),
    (os, "mkdir"),
    (os, "fsync"),
    (torch, "save"),
    (safetensors.torch, "serialize_file"),
)
"""Functions through which a checkpoint reaches the disk; opening for reading and making what exists are left alone."""


class Faults:
    """Counts the writes within `counting()`; within `failing(k)` the k-th one raises "no space left on device"."""

    def __init__(self, writers: tuple[tuple[Any, str], ...] = WRITERS) -> None:
        self.writers = writers
        self.calls: list[str] = []
        self.fails_at = 0

    @contextmanager
    def counting(self) -> Iterator[None]:
        with self.failing(0):
            yield

    @contextmanager
    def failing(self, number: int) -> Iterator[None]:
        self.calls, self.fails_at = [], number
        with ExitStack() as stack:
            for module, name in self.writers:
                stack.enter_context(mock.patch.object(module, name, self.watched(getattr(module, name), name)))
            yield

    def watched(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if writes(args, kwargs) if name == "open" else not (name == "mkdir" and Path(args[0]).is_dir()):
                self.calls.append(f"{name}({', '.join(str(arg)[:80] for arg in args[:2])})")
                if len(self.calls) == self.fails_at:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return function(*args, **kwargs)

        return call


def writes(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call of `open` opens for writing."""
    mode = args[1] if len(args) > 1 else kwargs.get("mode", "r")
    if isinstance(mode, int):  # os.open
        return bool(mode & (os.O_WRONLY | os.O_RDWR))
    return any(letter in mode for letter in "wax+")


def train_and_never_end(folder: str, settings: dict[str, Any]) -> None:
    """`train_tiny` whose second step is a single operation in C that takes hours and lets no signal handler run."""

    class Endless(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 1:
                (Path(folder) / "begun").write_text("x")
                hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)

    with (Path(folder) / "printed").open("a", buffering=1) as printed:
        sys.stdout = printed
        trainer = tiny_run(folder, **settings)
        trainer.add_callback(Endless())
        trainer.train()
