"""Checkpoints that are complete or absent: written beside, hashed, then renamed; found again by their manifest."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from strop.disk import write_text
from strop.engine.run_identity import check_same_run, new_since
from strop.errors import CheckpointError, SetupError

MANIFEST = "manifest.json"
PARTIAL = ".partial"
WEIGHTS = "model*.safetensors*"
"""Files of a model's weights, in one piece or in several with their index."""


def write_manifest(folder: Path, step: int, run: dict[str, Any] | None = None) -> None:
    """Sizes and hashes of every file of a checkpoint; written last, so its presence means the rest is complete."""
    files = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "blake2b": file_hash(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    manifest = {"step": step, "run": run, "files": files}
    write_text(folder / MANIFEST, json.dumps({**manifest, "blake2b": manifest_hash(manifest)}, indent=1))


def manifest_hash(manifest: dict[str, Any]) -> str:
    said = {name: value for name, value in manifest.items() if name != "blake2b"}
    return hashlib.blake2b(json.dumps(said, sort_keys=True).encode(), digest_size=16).hexdigest()


def problems_of(folder: Path) -> list[str]:
    """Why a checkpoint cannot be used; empty if it is complete."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return ["it has no manifest: writing it did not finish"]
    try:
        said = json.loads(manifest.read_text(encoding="utf-8"))
        listed = {str(name): (int(facts["bytes"]), str(facts["blake2b"])) for name, facts in said["files"].items()}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OSError):
        return ["its manifest cannot be read"]
    if not listed:
        return ["its manifest names no file"]
    if said.get("blake2b", manifest_hash(said)) != manifest_hash(said):
        return ["its manifest has other contents than when it was written"]
    problems = []
    for name, (size, digest) in listed.items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif path.stat().st_size != size:
            problems.append(f"{name} has {path.stat().st_size} bytes instead of {size}")
        elif file_hash(path) != digest:
            problems.append(f"{name} has other contents than when it was written")
    return problems


def check_whole(folder: Path) -> None:
    """Raises `CheckpointError` with everything that is wrong with a checkpoint."""
    if problems := problems_of(folder):
        raise CheckpointError.collect(f"The checkpoint {folder} cannot be used:", problems)


def read_manifest(folder: Path) -> dict[str, Any]:
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
    if isinstance(error, SetupError) and isinstance(error.__cause__, OSError):
        return write_failure(error.__cause__)  # a part that names its own files
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, SafetensorError):
        return str(error)
    cut_off = any(name in str(error) for name in ("inline_container", "PytorchStreamWriter"))  # torch.save
    return "the disk took only a part of a file, as a full one does" if cut_off else None


@contextmanager
def without_progress_bars() -> Iterator[None]:
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def find_checkpoint(resume: str | bool, output_dir: str, run: dict[str, Any], say: Callable[[str], None]) -> Path:
    """The checkpoint to go on from: a folder, or for True the newest complete one of `output_dir`.

    Raises:
        CheckpointError: there is none, it is not complete, or it is of another `run`.
    """
    if resume is True or str(resume).lower() == "true":
        folder, skipped = newest_valid(output_dir)
        for line in skipped:
            say(f"Passed over {line}")
        if folder is None:
            raise CheckpointError(
                f"There is no complete checkpoint in {output_dir} to resume from. "
                "Start without resume_from_checkpoint (--resume), or give the folder of a checkpoint."
            )
    else:
        folder = Path(str(resume))
        if not folder.is_dir():
            raise CheckpointError(f"resume_from_checkpoint={str(folder)!r} is not a folder.")
        check_whole(folder)
    manifest = read_manifest(folder)
    check_same_run(folder, manifest, run)
    say(f"Resuming from {folder}")
    for line in new_since(folder, manifest.get("run"), run):
        say(line)
    return folder


@contextmanager
def draft(run_dir: Path, step: int, *, first: bool, wait: Callable[[], None]) -> Iterator[Path]:
    """The folder beside in which a checkpoint is written before it is published.

    The `first` rank clears what a killed run left half written, and what a failure leaves; `wait` returns once all
    ranks have called it.

    Raises:
        SetupError: the disk is full, or cannot be written.
    """
    beside = run_dir / f"{PARTIAL}-checkpoints"
    if first:
        remove(beside)
    wait()
    try:
        yield beside / f"{PREFIX_CHECKPOINT_DIR}-{step}"
    except (OSError, SafetensorError, RuntimeError, SetupError) as error:
        reason = write_failure(error)
        if reason is None:
            raise
        if first:
            shutil.rmtree(beside, ignore_errors=True)
        raise SetupError(
            f"The checkpoint of step {step} could not be written to {run_dir}: {reason}. Earlier checkpoints are "
            "intact. Free disk space or choose another output_dir, then resume with resume_from_checkpoint=True (on "
            "the command line --resume)."
        ) from error


@contextmanager
def files_beside(place: Path, what: str) -> Iterator[Path]:
    """A folder beside, whose files take their places in `place` once all are written; what was there stays till then.

    Raises:
        SetupError: the disk is full, or cannot be written; `what` says what was to be.
    """
    beside = place / f"{PARTIAL}-files"
    try:
        remove(beside)
        beside.mkdir(parents=True)
        if (card := place / "README.md").is_file():
            shutil.copyfile(card, beside / card.name)  # which libraries add to
        yield beside
        files = [path for path in beside.rglob("*") if path.is_file()]
        for path in files:
            sync_to_disk(path)
            (place / path.relative_to(beside)).parent.mkdir(parents=True, exist_ok=True)
        shards = {path.name for path in files if path.match(WEIGHTS)}
        for path in files:
            path.replace(place / path.relative_to(beside))
        for old in place.glob(WEIGHTS) if shards else ():  # of a model in other pieces
            if old.name not in shards:
                old.unlink()
    except (OSError, SafetensorError, RuntimeError, SetupError) as error:
        if (reason := write_failure(error)) is None:
            raise
        raise SetupError(
            f"{what} could not be written to {place}: {reason}. What was there before is as it was, and so are the "
            "checkpoints. Free disk space, or choose another folder, and save again."
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def publish(draft: Path, run_dir: Path, state: TrainerState, *, run: dict[str, Any], limit: int | None) -> None:
    """Complete a checkpoint and give it its name; the oldest ones beyond `limit` go.

    The best one is named by its final place, everything is flushed, and the manifest written, before the rename.
    """
    if state.best_global_step:
        best = run_dir / f"{PREFIX_CHECKPOINT_DIR}-{state.best_global_step}"
        exists = best.is_dir() or state.best_global_step == state.global_step
        state.best_model_checkpoint = str(best) if exists else None
        state.save_to_json(str(draft / "trainer_state.json"))
    for path in draft.rglob("*"):
        if path.is_file():
            sync_to_disk(path)
    write_manifest(draft, state.global_step, run)
    rename(draft, run_dir / draft.name)
    shutil.rmtree(draft.parent, ignore_errors=True)
    if limit:
        keep = {Path(state.best_model_checkpoint or "").name}
        rest = [path for path in checkpoints(run_dir) if path.name not in keep]
        for old in rest[max(1, limit - len(keep & {p.name for p in checkpoints(run_dir)})) :]:
            remove(old)


def same_best(state: TrainerState, world_size: int) -> None:
    """Name the best checkpoint on every rank as the first one does, which has put it into its place: others saw it in
    the making. They wait for that."""
    if world_size > 1:
        named = [state.best_model_checkpoint]
        torch.distributed.broadcast_object_list(named)
        state.best_model_checkpoint = named[0]


def remove(path: Path) -> None:
    """Remove a folder, as far as that goes; of a link to one, the link."""
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def rename(draft: Path, target: Path) -> None:
    """Put a finished checkpoint into its place; one that was there before stays until then."""
    previous = target.parent / f"{PARTIAL}-previous-{target.name}"
    if target.exists():
        remove(previous)
        target.replace(previous)
    try:
        draft.replace(target)
    except OSError:
        if previous.exists():
            previous.replace(target)
        raise
    sync_to_disk(target.parent)
    remove(previous)
