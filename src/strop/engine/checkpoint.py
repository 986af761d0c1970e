"""Checkpoints that are complete or absent: written beside, hashed, then renamed; found again by their manifest."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput
from transformers.utils import logging

from strop.engine.lost_ranks import lost_ranks_named
from strop.engine.reference_scores import part_path, parts_until
from strop.engine.reference_upkeep import load_reference, save_reference
from strop.engine.run_identity import RunLock, check_same_run, finished_at, folder_for, identity
from strop.engine.run_state import load_rank_state, save_rank_state
from strop.errors import CheckpointError, SetupError
from strop.plain_text import masked
from strop.watch.stop_signals import StopSignals

MANIFEST = "manifest.json"
PARTIAL = ".partial"


def write_manifest(folder: Path, step: int, run: dict[str, Any] | None = None) -> None:
    """Sizes and hashes of every file of a checkpoint; written last, so its presence means the rest is complete."""
    files = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "blake2b": file_hash(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    partial = folder / f"{MANIFEST}{PARTIAL}"
    partial.write_text(json.dumps({"step": step, "run": run, "files": files}, indent=1))
    sync_to_disk(partial)
    partial.replace(folder / MANIFEST)


def problems_of(folder: Path, *, check_hashes: bool = True) -> list[str]:
    """Why a checkpoint cannot be used; empty if it is complete."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return ["it has no manifest: writing it did not finish"]
    try:
        files = json.loads(manifest.read_text(encoding="utf-8"))["files"]
        listed = {str(name): (int(facts["bytes"]), str(facts["blake2b"])) for name, facts in files.items()}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OSError):
        return ["its manifest cannot be read"]
    if not listed:
        return ["its manifest names no file"]
    problems = []
    for name, (size, digest) in listed.items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif path.stat().st_size != size:
            problems.append(f"{name} has {path.stat().st_size} bytes instead of {size}")
        elif check_hashes and file_hash(path) != digest:
            problems.append(f"{name} has other contents than when it was written")
    return problems


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint without problems."""
    manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return manifest


def checkpoints(output_dir: str | Path) -> list[Path]:
    """Checkpoint folders of a run, newest step first."""
    folders = [
        p
        for p in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if p.is_dir() and p.name.rsplit("-", 1)[1].isdigit()
    ]
    return sorted(folders, key=lambda path: int(path.name.rsplit("-", 1)[1]), reverse=True)


def newest_valid(output_dir: str | Path) -> tuple[Path | None, list[str]]:
    """The newest complete checkpoint of a run, and a line about each newer one that was passed over."""
    skipped: list[str] = []
    for folder in checkpoints(output_dir):
        if not (problems := problems_of(folder)):
            return folder, skipped
        skipped.append(f"{folder.name}: {problems[0]}")
    return None, skipped


def file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def sync_to_disk(path: Path) -> None:
    """Flush a file or folder to the device, so that a rename that follows cannot outrun its contents."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_failure(error: Exception) -> str | None:
    """Why a file could not be written, in words; None if the error is about something else."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, SafetensorError):
        return str(error)
    cut_off = any(name in str(error) for name in ("inline_container", "PytorchStreamWriter"))  # torch.save
    return "the disk took only a part of a file, as a full one does" if cut_off else None


@contextmanager
def without_secrets(trainer: Any) -> Iterator[None]:
    """The trainer's settings with secrets as `***`, while something is written from them."""
    args = trainer.args
    trainer.args = copy.copy(args)
    vars(trainer.args).update(masked(vars(args)))
    try:
        yield
    finally:
        trainer.args = args


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Keeps transformers from drawing a bar for every file that it writes."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


class CheckpointMixin:
    """Saving and finding checkpoints around the parent trainer, which writes their contents."""

    def extra_state(self: Any) -> dict[str, Any]:
        """What a method must find again after a resume (running means, coefficients): plain values and tensors."""
        return {}

    def load_extra_state(self: Any, state: dict[str, Any]) -> None:
        """Take back what `extra_state` gave."""

    def share_extra_state(self: Any, states: list[dict[str, Any]]) -> dict[str, Any]:
        """This rank's part of what all ranks of a run on another number of processes gave."""
        return states[0]

    def train(self: Any, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Train; `resume_from_checkpoint` is a folder, or True for the newest complete checkpoint of `output_dir`."""
        resume = resume_from_checkpoint or self.args.resume_from_checkpoint
        folder = self.find_checkpoint(resume) if resume else None
        self.enter_folder(folder)
        try:
            if folder is not None and (finished := self.finished(folder)) is not None:
                return finished
            return self.train_from(folder, **kwargs)
        finally:
            self.run_lock.release()

    def train_from(self: Any, folder: Path | None, **kwargs: Any) -> Any:
        """The parent's training from a checkpoint or the beginning, and an end by name where a rank is lost."""
        self._random_state_of = None
        if folder is not None:
            self.load_strop_state(folder)
        stop_signals = next(c for c in self.callback_handler.callbacks if isinstance(c, StopSignals))
        try:
            with lost_ranks_named(self):
                result = super().train(resume_from_checkpoint=str(folder) if folder else None, **kwargs)  # type: ignore[misc]
        finally:
            stop_signals.restore()
        stop_signals.leave()
        return TrainOutput(result.global_step, result.metrics["train_loss"], result.metrics)

    def enter_folder(self: Any, checkpoint: Path | None) -> None:
        """Take the run's folder for this run: a fresh one beside, if another run's checkpoints are in it."""
        if checkpoint is None and self.run_lock is None:
            fresh = [str(folder_for(self.args.output_dir, overwrite=self.args.overwrite_output_dir))]
            if self.args.world_size > 1:
                torch.distributed.broadcast_object_list(fresh)
            if fresh[0] != self.args.output_dir:
                self.say(
                    f"{self.args.output_dir} holds another run; this one begins in {fresh[0]}. To go on from the "
                    "other: resume_from_checkpoint=True; to begin anew in its place: overwrite_output_dir=True."
                )
                self.args.output_dir = fresh[0]
        self.run_lock = RunLock(self.args.output_dir)
        if self.args.process_index == 0:
            self.run_lock.acquire()

    def finished(self: Any, folder: Path) -> Any:
        """What `train` returned at the end of a run that had ended already, its weights loaded; None if it goes on."""
        args = self.args
        step = finished_at(folder, max_steps=args.max_steps, num_train_epochs=args.num_train_epochs)
        if step is None:
            return None
        self._load_from_checkpoint(str(folder))
        self.state = TrainerState.load_from_json(str(folder / "trainer_state.json"))
        self.say(f"The run of {folder} ended at step {step}; there is nothing left to train.")
        return TrainOutput(step, 0.0, {})

    def newest_checkpoint(self: Any) -> Path | None:
        """The newest complete checkpoint of this run."""
        return newest_valid(self.args.output_dir)[0]

    def find_checkpoint(self: Any, resume: str | bool) -> Path:
        if resume is True or str(resume).lower() == "true":
            folder, skipped = newest_valid(self.args.output_dir)
            for line in skipped:
                self.say(f"Passed over {line}")
            if folder is None:
                raise CheckpointError(
                    f"There is no complete checkpoint in {self.args.output_dir} to resume from. "
                    "Start without resume_from_checkpoint, or give the folder of a checkpoint."
                )
        else:
            folder = Path(str(resume))
            if not folder.is_dir():
                raise CheckpointError(f"resume_from_checkpoint={str(folder)!r} is not a folder.")
            if problems := problems_of(folder):
                raise CheckpointError.collect(f"The checkpoint {folder} cannot be resumed from:", problems)
        check_same_run(folder, read_manifest(folder), self.identity())
        self.say(f"Resuming from {folder}")
        return folder

    def identity(self: Any) -> dict[str, Any]:
        """What identifies this run."""
        return identity(self.args.method, self.args.to_dict(), self.policy)

    def load_strop_state(self: Any, folder: Path) -> None:
        same_ranks = load_rank_state(self, folder)
        load_reference(self, folder)
        if self.reference_scores is not None:
            rank = self.args.process_index if same_ranks else None
            for part in parts_until(folder.parent, int(folder.name.rsplit("-", 1)[1]), rank):
                self.reference_scores.load(part)
        self._random_state_of = str(folder)

    def _load_rng_state(self: Any, checkpoint: str | None) -> None:
        """Once for a resume, before the first rows are prepared.

        Sampling and rewards may draw random numbers; the parent, which prepares nothing, comes after them in the middle
        of an epoch.
        """
        if self._random_state_of is not None:
            self._random_state_of = None
            super()._load_rng_state(checkpoint)  # type: ignore[misc]

    def _save_checkpoint(self: Any, model: Any, trial: Any) -> None:
        """Let the parent write into a folder beside, add strop's own state and the manifest, then rename."""
        run_dir = Path(self._get_output_dir(trial=trial))
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        beside = run_dir / f"{PARTIAL}-checkpoints"
        if self.args.should_save:
            shutil.rmtree(beside, ignore_errors=True)  # what a killed run left half written
        self.wait_for_all()
        self._redirected = str(beside)
        try:
            super()._save_checkpoint(model, trial)  # type: ignore[misc]
            save_rank_state(self, beside / name)
            if self.reference_scores is not None:
                part = part_path(run_dir, self.state.global_step, self.args.process_index)
                self.reference_scores.save(part, new_only=True)
            self.wait_for_all()
            if self.args.should_save:
                self.write_strop_state(beside / name, run_dir)
                self.publish(beside, run_dir, name)
        except (OSError, SafetensorError, RuntimeError) as error:
            reason = write_failure(error)
            if reason is None:
                raise
            if self.args.should_save:
                shutil.rmtree(beside, ignore_errors=True)
            raise SetupError(
                f"The checkpoint of step {self.state.global_step} could not be written to {run_dir}: "
                f"{reason}. Earlier checkpoints are intact. Free disk space or choose "
                "another output_dir, then resume with resume_from_checkpoint=True."
            ) from error
        finally:
            self._redirected = None
        self.wait_for_all()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(run_dir / name))

    def _push_from_checkpoint(self: Any, checkpoint_folder: str) -> None:
        """As the parent, from the checkpoint's final place: an upload goes on while training does."""
        if not self._redirected:
            super()._push_from_checkpoint(checkpoint_folder)  # type: ignore[misc]

    def wait_for_all(self: Any) -> None:
        """Until every rank is here."""
        if self.args.world_size > 1:
            torch.distributed.barrier()

    def _save(self: Any, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """As the parent, without its progress bars, without secrets of the settings (the parent pickles them into every
        saved folder), and without the frozen adapter that only serves as reference."""
        names = getattr(self.reference, "adapter_names", None)
        with without_progress_bars(), without_secrets(self):
            if names is None:
                super()._save(output_dir, state_dict)  # type: ignore[misc]
            elif self.args.should_save:
                folder = output_dir or self.args.output_dir
                self.policy.save_pretrained(folder, selected_adapters=names, state_dict=state_dict)
                self.processing_class.save_pretrained(folder)

    def write_strop_state(self: Any, folder: Path, run_dir: Path) -> None:
        """Add strop's own state, name the best checkpoint by its final place, flush everything, write the manifest."""
        if self.state.best_global_step:
            best = run_dir / f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
            exists = best.is_dir() or self.state.best_global_step == self.state.global_step
            self.state.best_model_checkpoint = str(best) if exists else None
            self.state.save_to_json(str(folder / "trainer_state.json"))
        save_reference(self, folder)
        for path in folder.rglob("*"):
            if path.is_file():
                sync_to_disk(path)
        write_manifest(folder, self.state.global_step, self.identity())

    def publish(self: Any, beside: Path, run_dir: Path, name: str) -> None:
        """Rename a finished checkpoint into place and remove the oldest ones beyond `save_total_limit`."""
        target, previous = run_dir / name, run_dir / f"{PARTIAL}-previous-{name}"
        if target.exists():
            shutil.rmtree(previous, ignore_errors=True)
            target.replace(previous)
        try:
            (beside / name).replace(target)
        except OSError:
            if previous.exists():
                previous.replace(target)
            raise
        sync_to_disk(run_dir)
        shutil.rmtree(previous, ignore_errors=True)
        shutil.rmtree(beside, ignore_errors=True)
        limit = self.args.save_total_limit
        if limit:
            keep = {Path(self.state.best_model_checkpoint or "").name}
            rest = [path for path in checkpoints(run_dir) if path.name not in keep]
            for old in rest[max(1, limit - len(keep & {p.name for p in checkpoints(run_dir)})) :]:
                shutil.rmtree(old, ignore_errors=True)

    def _get_output_dir(self: Any, trial: Any) -> str:
        return getattr(self, "_redirected", None) or super()._get_output_dir(trial)  # type: ignore[misc]

    def say(self: Any, line: str) -> None:
        """A line for the user, once, from the first process."""
        if self.args.process_index == 0:
            print(line, flush=True)
