"""Keeping the reference as a run wants it: scored ahead of training, or moved towards the policy from time to time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from strop.model.reference import REFERENCE_ADAPTER

MOVED = "reference.safetensors"
PRECOMPUTED = "reference_logps.safetensors"


class PrecomputeReference(TrainerCallback):
    """Before the first step: the reference's log-probs of all rows, from a file of an earlier run where it fits."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        scores, path = self.trainer.reference_scores, Path(args.output_dir) / PRECOMPUTED
        reused = scores.load(path)
        rows_at_once = args.precompute_ref_batch_size or args.per_device_train_batch_size
        evaluation = self.trainer.eval_dataset
        sets = [self.trainer.train_dataset, *(evaluation.values() if isinstance(evaluation, Mapping) else [evaluation])]
        fresh = sum(scores.precompute(dataset, rows_at_once) for dataset in sets if dataset is not None)
        if state.is_world_process_zero and fresh:
            scores.save(path)
        self.trainer.say(
            f"Reference log-probs: {fresh} rows computed, {'the others' if reused else 'none'} taken from {path}."
        )


class SyncReference(TrainerCallback):
    """TR-DPO: every `ref_model_sync_steps` steps, reference <- alpha * policy + (1 - alpha) * reference."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % args.ref_model_sync_steps == 0:
            self.trainer.reference.sync(args.ref_model_mixup_alpha)
            self.trainer.reference_scores.forget()


def reference_weights(trainer: Any) -> dict[str, torch.Tensor]:
    """The weights of a reference that moves, by name; empty for one that does not."""
    if trainer.reference is None or not getattr(trainer.args, "sync_ref_model", False):
        return {}
    if hasattr(trainer.reference, "model"):
        return dict(trainer.reference.model.named_parameters())
    return {name: p for name, p in trainer.policy.named_parameters() if f".{REFERENCE_ADAPTER}." in name}


def save_reference(trainer: Any, folder: Path) -> None:
    """Keep a moving reference in a checkpoint."""
    if weights := reference_weights(trainer):
        save_file({name: p.detach().cpu().contiguous() for name, p in weights.items()}, folder / MOVED)


def load_reference(trainer: Any, folder: Path) -> None:
    """Put a moving reference back to where a checkpoint left it."""
    weights = reference_weights(trainer)
    if not weights:
        return
    saved = load_file(folder / MOVED)
    with torch.no_grad():
        for name, parameter in weights.items():
            parameter.copy_(saved[name])


def upkeep(trainer: Any) -> list[TrainerCallback]:
    """The callbacks that the settings ask for."""
    if trainer.reference is None:
        return []
    callbacks: list[TrainerCallback] = []
    if getattr(trainer.args, "precompute_ref_log_probs", False):
        callbacks.append(PrecomputeReference(trainer))
    if getattr(trainer.args, "sync_ref_model", False):
        callbacks.append(SyncReference(trainer))
    return callbacks
