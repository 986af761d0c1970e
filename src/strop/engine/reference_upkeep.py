"""Keeping the reference as a run wants it: scored ahead of training, or moved towards the policy from time to time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from strop.engine.reference_scores import ReferenceScores
from strop.engine.sharding import comparable, share_of, whole
from strop.model.reference import REFERENCE_ADAPTER
from strop.records import Batch, Example
from strop.watch.say import say

MOVED = "reference.safetensors"
PRECOMPUTED = "reference_logps.safetensors"


class PrecomputeReference(TrainerCallback):
    """Before the first step: the reference's log-probs of all rows, from a file of an earlier run where it fits. The
    reference is not held any longer then."""

    def __init__(
        self, scores: ReferenceScores, build: Callable[[list[Example]], Batch], sets: Iterable[Any], folder: str
    ) -> None:
        self.scores, self.build, self.sets = scores, build, sets
        self.folder = folder  # that was asked for; a run may move to one beside it

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        scores, path = self.scores, Path(args.output_dir) / PRECOMPUTED
        reused = any([scores.load(folder / PRECOMPUTED) for folder in {Path(self.folder), path.parent}])
        rows_at_once = args.precompute_ref_batch_size or args.per_device_train_batch_size
        fresh = sum(scores.precompute(dataset, rows_at_once, self.build) for dataset in self.sets)
        if state.is_world_process_zero and fresh:
            try:
                scores.save(path)
            except OSError as error:
                say(args, f"Reference log-probs: not kept for later runs, {path} cannot be written ({error}).")
        scores.let_go()
        source = f"{'the others' if reused else 'none'} taken from {path}"
        say(args, f"Reference log-probs: {fresh} rows computed, {source}.")


class SyncReference(TrainerCallback):
    """TR-DPO: every `ref_model_sync_steps` steps, reference <- alpha * policy + (1 - alpha) * reference."""

    def __init__(self, reference: Any, scores: ReferenceScores) -> None:
        self.reference, self.scores = reference, scores

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step % args.ref_model_sync_steps == 0:
            with comparable([model, *own_models(self.reference)]):
                self.reference.sync(args.ref_model_mixup_alpha)
            self.scores.forget()


def own_models(reference: Any) -> list[torch.nn.Module]:
    return [reference.model] if hasattr(reference, "model") else []


@contextmanager
def moving_weights(args: Any, reference: Any, policy: torch.nn.Module) -> Iterator[dict[str, torch.nn.Parameter]]:
    """The weights of a reference that moves, by name, to be read and written by all ranks together; empty for one that
    does not."""
    if reference is None or not getattr(args, "sync_ref_model", False):
        yield {}
        return
    models = own_models(reference)
    with comparable(models or [policy]):
        if models:
            yield dict(reference.model.named_parameters())
        else:
            yield {name: p for name, p in policy.named_parameters() if f".{REFERENCE_ADAPTER}." in name}


def save_reference(args: Any, reference: Any, policy: torch.nn.Module, folder: Path) -> None:
    """Keep a moving reference in a checkpoint, as one process has it; all ranks call this together."""
    with moving_weights(args, reference, policy) as moving:
        weights = {name: whole(p.detach()) for name, p in moving.items()}
        if weights and args.should_save:
            save_file({name: weight.cpu().contiguous() for name, weight in weights.items()}, folder / MOVED)


def load_reference(args: Any, reference: Any, policy: torch.nn.Module, folder: Path) -> None:
    with torch.no_grad(), moving_weights(args, reference, policy) as weights:
        saved = load_file(folder / MOVED) if weights else {}
        for name, parameter in weights.items():
            parameter.copy_(share_of(saved[name], parameter))


def upkeep(
    args: Any, scores: ReferenceScores, build: Callable[[list[Example]], Batch], train: Any, evaluation: Any
) -> list[TrainerCallback]:
    callbacks: list[TrainerCallback] = []
    if getattr(args, "precompute_ref_log_probs", False):
        sets = [train, *(evaluation.values() if isinstance(evaluation, Mapping) else [evaluation])]
        given = [dataset for dataset in sets if dataset is not None]
        callbacks.append(PrecomputeReference(scores, build, given, args.output_dir))
    if getattr(args, "sync_ref_model", False):
        with comparable(own_models(scores.reference)):
            scores.reference.check_sync(args.ref_model_mixup_alpha)
        callbacks.append(SyncReference(scores.reference, scores))
    return callbacks
