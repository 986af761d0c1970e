"""Tokenised trees kept: packed in memory, and in a cache folder if there is one, for a second run to read.

The folder of a set is named by a hash of everything its ids depend on: the checked rows, the tokenizer, the options,
the kind, and the version of these rules. Edited data or another template lead to another folder. A process writes
whole files of its own, beside their final name first, so any number of processes may share a folder: none reads a
half-written file, and the same tree written twice is the same.

File: magic, records, then the index (position, offset, size of each record), then a footer of offset, count, checksum.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
import uuid
import zlib
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from strop.data.options import TokenizeOptions, repr_of_tool
from strop.data.truncate import Tokenized
from strop.errors import SetupError

DATA_VERSION = 1
"""Raise it when the same rows and options lead to other ids or masks."""
MAGIC = b"strop-1\n"
FOOTER = struct.Struct("<QQI")
MEMORY_BYTES = 256 * 2**20
"""Packed trees held in memory; beyond it they go to the cache folder, or the oldest are forgotten."""
FLUSH_TREES = 8192
"""Trees that are collected before they are written to the cache folder."""


def pack_tree(tree: Tokenized) -> bytes:
    """A tree as bytes: what it is (JSON), its ids (int32), its masks (uint8)."""
    about = {
        "p": len(tree.prompt_ids),
        "c": [len(ids) for ids in tree.completions],
        "m": tree.masks is not None,
        "l": tree.labels,
        "f": tree.flags,
        "o": tree.left_out,
        "u": tree.uncut,
    }
    head = json.dumps(about, separators=(",", ":")).encode()
    ids = array("i", tree.prompt_ids)
    for completion in tree.completions:
        ids.extend(completion)
    masks = b"".join(map(bytes, tree.masks)) if tree.masks is not None else b""
    return struct.pack("<I", len(head)) + head + ids.tobytes() + masks


def unpack_tree(data: bytes) -> Tokenized:
    """The tree that `pack_tree` packed."""
    size = struct.unpack_from("<I", data)[0]
    about = json.loads(data[4 : 4 + size])
    ids = array("i")
    end = 4 + size + ids.itemsize * (about["p"] + sum(about["c"]))
    ids.frombytes(data[4 + size : end])
    flat = ids.tolist()
    completions, masks, start, at = [], [], about["p"], end
    for length in about["c"]:
        completions.append(flat[start : start + length])
        start += length
        if about["m"]:
            masks.append(list(data[at : at + length]))
            at += length
    return Tokenized(
        flat[: about["p"]],
        completions,
        masks if about["m"] else None,
        about["l"],
        tuple(about["f"]),
        tuple(about["o"]) if about["o"] else None,  # type: ignore[arg-type]
        about["u"],
    )


class TreeStore:
    """Packed trees by position. Without a folder it is a memory of bounded size."""

    def __init__(self, size: int, folder: Path | None = None) -> None:
        self.size, self.folder = size, folder
        self.pending: dict[int, bytes] = {}
        self.pending_bytes = 0
        self.owner = os.getpid()
        self.files: list[mmap.mmap] = []
        self.trouble: str | None = None
        self.read_paths: set[str] = set()
        self.file_of, self.offsets, self.sizes = array("i"), array("Q"), array("I")
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as problem:
                raise SetupError(f"cache_dir: '{folder}' cannot be made ({problem.strerror}).") from None
            self.file_of = array("i", [-1]) * size
            self.offsets, self.sizes = array("Q", [0]) * size, array("I", [0]) * size
            self.load()

    def load(self) -> None:
        """Find the files that this or other processes have written since the last look."""
        assert self.folder is not None
        for path in sorted(self.folder.glob("*.trees")):
            if path.name in self.read_paths:
                continue
            self.read_paths.add(path.name)
            try:
                self._load_file(path)
            except (OSError, ValueError, struct.error) as problem:
                self.trouble = f"the cache file '{path}' is damaged and was not used ({problem})"

    def _load_file(self, path: Path) -> None:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        offset, count, checksum = FOOTER.unpack_from(data, len(data) - FOOTER.size)
        index = data[offset : len(data) - FOOTER.size]
        if data[: len(MAGIC)] != MAGIC or zlib.crc32(index) != checksum or len(index) != 20 * count:
            raise ValueError("its index does not match its checksum")
        positions, offsets, sizes = array("Q"), array("Q"), array("I")
        positions.frombytes(index[: 8 * count])
        offsets.frombytes(index[8 * count : 16 * count])
        sizes.frombytes(index[16 * count :])
        number = len(self.files)
        self.files.append(data)
        for position, start, size in zip(positions, offsets, sizes, strict=True):
            if position < self.size:
                self.file_of[position], self.offsets[position], self.sizes[position] = number, start, size

    def get(self, position: int) -> Tokenized | None:
        """The tree at a position, None if it is not known."""
        data = self.pending.get(position)
        if data is None and self.folder is not None and self.file_of[position] >= 0:
            start = self.offsets[position]
            data = self.files[self.file_of[position]][start : start + self.sizes[position]]
        try:
            return None if data is None else unpack_tree(data)
        except (ValueError, KeyError, struct.error):
            self.trouble = f"a record in the cache folder '{self.folder}' is damaged and was not used"
            self.file_of[position] = -1
            return None

    def has(self, position: int) -> bool:
        """Whether the tree at a position is known."""
        return position in self.pending or (self.folder is not None and self.file_of[position] >= 0)

    def put(self, position: int, tree: Tokenized) -> None:
        """Keep a tree."""
        data = pack_tree(tree)
        self.pending[position] = data
        self.pending_bytes += len(data)
        if self.folder is not None and (len(self.pending) >= FLUSH_TREES or self.pending_bytes >= MEMORY_BYTES):
            self.flush()
        while self.pending_bytes > MEMORY_BYTES and len(self.pending) > 1:
            oldest = next(iter(self.pending))
            self.pending_bytes -= len(self.pending.pop(oldest))

    def flush(self) -> None:
        """Write what is in memory to the cache folder. A full disk costs the cache, not the run."""
        if self.folder is None or not self.pending or self.owner != os.getpid():
            return
        path = self.folder / f"{uuid.uuid4().hex}.trees"
        try:
            write_beside(path, self._file_bytes())
        except OSError as problem:
            self.trouble = f"the cache folder '{self.folder}' cannot be written ({problem.strerror})"
            return
        self.read_paths.add(path.name)
        self._load_file(path)
        self.pending, self.pending_bytes = {}, 0

    def _file_bytes(self) -> Iterator[bytes]:
        yield MAGIC
        start = len(MAGIC)
        positions, offsets, sizes = array("Q"), array("Q"), array("I")
        for position, data in self.pending.items():
            positions.append(position)
            offsets.append(start)
            sizes.append(len(data))
            start += len(data)
            yield data
        index = positions.tobytes() + offsets.tobytes() + sizes.tobytes()
        yield index
        yield FOOTER.pack(start, len(positions), zlib.crc32(index))

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the folder's lock: of several processes with the same set, one tokenises and the others then read."""
        if self.folder is None:
            yield
            return
        from filelock import FileLock

        lock = FileLock(str(self.folder / ".lock"))
        try:
            lock.acquire()
        except (OSError, NotImplementedError) as problem:
            self.trouble = f"the cache folder '{self.folder}' cannot be locked ({problem})"
            yield
            return
        try:
            self.load()
            yield
            self.flush()
        finally:
            lock.release()

    def __getstate__(self) -> dict[str, Any]:
        # A mapped file cannot be pickled: a spawned worker looks into the folder itself.
        return {"size": self.size, "folder": self.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["size"], state["folder"])  # type: ignore[misc]


def write_beside(path: Path, parts: Iterator[bytes]) -> None:
    """Write a file under another name and rename it, so that it is there whole or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


IRRELEVANT = ("skip_bad_rows", "score_prompt", "extra_roles")
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
