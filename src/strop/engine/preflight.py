"""What a run says before its first step: versions, devices, layout and rollout path and why, disk, memory."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback
from transformers.trainer_utils import SaveStrategy

from strop.disk import room_at
from strop.engine.fitting import fitted
from strop.engine.rehearsal import Rehearsed, untouched, why_not
from strop.errors import StropError
from strop.model import base_model
from strop.model.shards import size_of

if TYPE_CHECKING:
    from strop.engine.trainer import BaseTrainer

GB = 10**9


class DryRunEnds(StropError):
    """Everything before the first step is done, and no more was asked for."""


class Preflight(TrainerCallback):
    """Says what the run will do, and rehearses it; with `only` the run ends there."""

    def __init__(self, trainer: BaseTrainer) -> None:
        self.trainer, self.only = trainer, False
        self.folder: str | None = None  # where checkpoints will lie, if not in output_dir
        self.planned: Callable[[BaseTrainer, Rehearsed], int] = lambda trainer, found: 0  # bytes; the plan's, if known

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        reason = why_not(self.trainer)
        if not reason or self.only:
            with untouched(self.trainer):
                self.say_all(Path(self.folder or args.output_dir), reason)
        if self.only:
            raise DryRunEnds("The dry run ends before the first step; nothing was trained or written.")

    def say_all(self, folder: Path, reason: str) -> None:
        """Line by line, the rehearsal last; `reason` says why there is none."""
        for line in lines(self.trainer, folder):
            self.trainer.say(line)
        self.trainer.say(f"  rehearsal  none: {reason}" if reason else told(self.trainer, fitted(self.trainer)))


def lines(trainer: BaseTrainer, folder: Path) -> Iterator[str]:
    """What is known before anything is computed, one subject a line."""
    yield f"Before step {trainer.state.global_step + 1} of {trainer.state.max_steps}:"
    named = ", ".join(f"{name} {version(name)}" for name in ("strop", "torch", "transformers", "accelerate"))
    yield f"  versions   {named}, Python {platform.python_version()}"
    yield f"  devices    {devices(trainer)}"
    yield f"  model      {computing(trainer)}"
    yield f"  layout     {layout_text(trainer)}"
    yield f"  repeats    {repeats(trainer.args.device)}"
    if hasattr(trainer, "generator"):
        yield f"  rollout    {trainer.generator.name}: {trainer.generator.reason}"
    yield f"  disk       {disk(trainer, folder)}"


def devices(trainer: BaseTrainer) -> str:
    """The device of this process, and whether all processes that were asked for, and all cards, are at work."""
    device, world = trainer.args.device, trainer.args.world_size
    asked = int(os.environ.get("WORLD_SIZE", 1))
    said = f"{device}, {torch.get_num_threads()} threads"
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        said = f"{device}, {properties.name}, {properties.total_memory / GB:.0f} GB"
        idle = torch.cuda.device_count() - int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        if idle > 0:
            said += f"; {idle} more of this machine are idle: start with torchrun --nproc_per_node"
    return f"{said}; {world} of {asked} process{'es' if asked > 1 else ''}"


def layout_text(trainer: BaseTrainer) -> str:
    if trainer.args.layout != "auto":
        return f"{trainer.args.layout} (set by layout)"
    return f"{trainer.layout.name} ({trainer.layout.reason})"


def computing(trainer: BaseTrainer) -> str:
    model, args = base_model(trainer.policy), trainer.args
    weights = list(trainer.policy.parameters())
    trained = sum(size_of(each) for each in weights if each.requires_grad)
    mixed = " under bfloat16" if args.bf16 else " under float16" if args.fp16 else ""
    attention = getattr(getattr(model, "config", None), "_attn_implementation", None)
    return (
        f"{type(model).__name__}, {trained:,} of {sum(size_of(each) for each in weights):,} weights trained, "
        f"{str(weights[0].dtype).removeprefix('torch.')}{mixed}, attention {attention}"
    )


def repeats(device: torch.device) -> str:
    """Whether a run that is gone on with, or made again, ends with the same bytes, and what to do where it does not.

    On a CPU sums have one order. On a card the gradient of attention, and of everything that is picked out by an index,
    is added up by atomic operations, in the order in which threads end; PyTorch has kernels of a fixed order for them,
    which it takes where deterministic algorithms are asked for without `warn_only`.
    """
    if device.type == "cpu":
        return "to the last byte"
    if not torch.are_deterministic_algorithms_enabled():
        return "but for rounding: sums have no fixed order on this device; full_determinism=True fixes it, slower"
    if torch.is_deterministic_algorithms_warn_only_enabled():
        return (
            "but for rounding: warn_only=True leaves kernels without a fixed order in place; call "
            "torch.use_deterministic_algorithms(True), or set full_determinism=True"
        )
    return "to the last byte on a device of this kind, as far as PyTorch's deterministic kernels go (full_determinism)"


def disk(trainer: BaseTrainer, folder: Path) -> str:
    """What the checkpoints will take, and what is free; a warning where that is less."""
    args, (place, free) = trainer.args, room_at(folder)
    if args.save_strategy == SaveStrategy.NO:
        return f"no checkpoints; {free / GB:.1f} GB free"
    weights = list(trainer.policy.parameters())
    trained = [each for each in weights if each.requires_grad]
    saved = trained if hasattr(trainer.policy, "peft_config") else weights
    size = sum(size_of(each) * each.element_size() for each in saved) + sum(8 * size_of(each) for each in trained)
    steps = trainer.state.max_steps - trainer.state.global_step
    every = args.save_steps if args.save_strategy == SaveStrategy.STEPS else steps / max(args.num_train_epochs, 1)
    count = max(1, round(steps / max(every, 1)))
    count = min(count, args.save_total_limit + 1) if args.save_total_limit else count
    said = f"{count} checkpoint{'s' if count > 1 else ''} of {size / GB:.2f} GB; {free / GB:.1f} GB free in {place}"
    return f"Warning: too little: {said}. Set save_total_limit, or another output_dir." if count * size > free else said


def told(trainer: BaseTrainer, found: Rehearsed) -> str:
    """The rehearsal in a line: rows, tokens, seconds, memory beside what the plan says."""
    planned = trainer.preflight.planned(trainer, found)
    beside = f" (plan: {planned / GB:.2f} GB)" if planned else ""
    what = "" if trainer.args.device.type == "cuda" else " of the whole process"
    return (
        f"  rehearsal  two micro-batches of the longest rows known, up to {found.longest:,} tokens: "
        f"{found.seconds:.1f} s, memory {found.peak / GB:.2f} GB{what}{beside}"
    )
