"""The folder in which the trees of a set are kept: its name, its lock, and how a file comes into it.

The name is a hash of everything that ids depend on: the checked rows, the tokenizer, the options, the kind, and the
version of these rules. Edited data or another template lead to another folder.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from strop.data.options import TokenizeOptions, repr_of_tool

DATA_VERSION = 2
"""Raise it when the same rows and options lead to other ids or masks, or when files of trees are written otherwise."""
PATIENCE_S = 5.0
"""Seconds of waiting for another process's lock before the process is named."""

logger = logging.getLogger(__name__)


def folder_of(cache_dir: str | Path, name: str, key: str) -> Path:
    """Where the trees of a set are kept: a name of a set is no path, so what could lead elsewhere is replaced."""
    return Path(cache_dir).expanduser() / f"{re.sub(r'[^A-Za-z0-9_-]+', '_', name)[:64]}-{key}"


IRRELEVANT = ("skip_bad_rows", "score_prompt")
"""Options that change which rows are read or what is done with trees, but no ids."""


def cache_key(fingerprint: str, kind: str, options: TokenizeOptions, template: str | None, tokenizer: Any) -> str:
    """A name for the trees of these rows, made with these settings by this tokenizer."""
    chosen = {f.name: getattr(options, f.name) for f in fields(options) if f.name not in IRRELEVANT}
    chosen["chat_template"], chosen["chat_template_path"] = template, None
    parts = [DATA_VERSION, fingerprint, kind, chosen, describe_tokenizer(tokenizer)]
    text = json.dumps(parts, sort_keys=True, default=repr_of_tool)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def describe_tokenizer(tokenizer: Any) -> dict[str, Any]:
    """Everything of a tokenizer that ids depend on; not the padding and truncation that a call leaves behind."""
    about: dict[str, Any] = {
        "class": type(tokenizer).__name__,
        "special": {key: str(value) for key, value in getattr(tokenizer, "special_tokens_map", {}).items()},
        "template": getattr(tokenizer, "chat_template", None),
        "flags": {name: getattr(tokenizer, name, None) for name in ("add_bos_token", "add_eos_token")},
    }
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        vocabulary = tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else {}
        return about | {"vocabulary": sorted(vocabulary.items())}
    state = json.loads(backend.to_str())
    state.pop("padding", None)
    state.pop("truncation", None)
    return about | {"state": state}


@contextmanager
def locked(folder: Path, note: Callable[[str], None]) -> Iterator[bool]:
    """Hold a folder's lock; yields whether it is held.

    A lock that cannot be had, or that a process has which stands still, is not waited for: `note` is told why.
    """
    from filelock import FileLock

    lock = FileLock(str(folder / ".lock"))
    try:
        yield _acquired(lock, folder, note)
    finally:
        lock.release()


def _acquired(lock: Any, folder: Path, note: Callable[[str], None]) -> bool:
    from filelock import Timeout

    owner, named = folder / ".lock-owner", False
    while True:
        try:
            lock.acquire(timeout=PATIENCE_S)
            owner.write_text(json.dumps([socket.gethostname(), os.getpid()]))
            return True
        except Timeout:
            holder, stopped = _holder(owner)
            if stopped:
                note(f"the cache folder '{folder}' is locked by {holder}, which is stopped, and was not waited for")
                return False
            if not named:
                logger.warning("the cache folder '%s' is locked by %s: waiting for it", folder, holder)
            named = True
        except (OSError, NotImplementedError) as problem:
            note(f"the cache folder '{folder}' cannot be locked ({problem})")
            return lock.is_locked


def _holder(owner: Path) -> tuple[str, bool]:
    """Who wrote the owner's file of a lock, in words; whether it is a process of this machine that stands still."""
    try:
        host, pid = json.loads(owner.read_text())
    except (OSError, ValueError):
        return "another process", False
    try:
        state = Path(f"/proc/{pid:d}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, ValueError, IndexError):
        state = "unknown"
    return f"process {pid} on {host}", state in "tT" and host == socket.gethostname()
