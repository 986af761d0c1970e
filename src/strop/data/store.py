"""Tokenised trees kept: packed in memory, and in a cache folder if there is one, for a second run to read.

A process writes whole Arrow files of its own, so any number of processes may share a folder: none reads a half-written
file, and the same tree written twice is the same. Every record carries a checksum of whose tree it is and what it
says; one that fails it when it is read is not used, and the tree is built anew.
"""

from __future__ import annotations

import json
import logging
import os
import uuid
import zlib
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate, chain, pairwise
from pathlib import Path
from typing import Any

from strop.data.cache_folder import locked
from strop.data.truncate import Tokenized
from strop.disk import written_beside
from strop.errors import SetupError
from strop.plain_text import first_line

MEMORY_BYTES = 256 * 2**20
"""Packed trees held in memory; beyond it they go to the cache folder, or the oldest are forgotten."""
FLUSH_TREES = 8192
"""Trees that are collected before they are written to the cache folder."""

logger = logging.getLogger(__name__)


def pack_tree(tree: Tokenized) -> bytes:
    """A tree as bytes: a line of JSON that says what it is, its ids (int32), its masks (uint8)."""
    sizes = [len(ids) for ids in (tree.prompt_ids, *tree.completions)]
    about = [sizes, tree.masks is not None, tree.labels, tree.flags, tree.left_out, tree.uncut]
    ids = array("i", chain(tree.prompt_ids, *tree.completions))
    return json.dumps(about).encode() + b"\n" + ids.tobytes() + bytes(chain(*(tree.masks or ())))


def unpack_tree(data: bytes) -> Tokenized:
    """The tree that `pack_tree` packed."""
    head, _, body = data.partition(b"\n")
    sizes, masked, labels, flags, left_out, uncut = json.loads(head)
    cuts = list(pairwise(accumulate(sizes, initial=0)))
    ids = array("i", body[: 4 * cuts[-1][1]])
    prompt, *completions = [ids[start:end].tolist() for start, end in cuts]
    bits = body[4 * (cuts[-1][1]) :]
    masks = [list(bits[start - sizes[0] : end - sizes[0]]) for start, end in cuts[1:]] if masked else None
    out = None if left_out is None else (left_out[0], left_out[1])
    return Tokenized(prompt, completions, masks, labels, tuple(flags), out, uncut)


class TreeStore:
    """Packed trees by position. Without a folder it is a memory of bounded size.

    `note` is told, in a sentence, what could not be read, written or locked; the trees are right all the same.
    """

    def __init__(self, size: int, folder: Path | None = None, note: Callable[[str], None] = logger.warning) -> None:
        self.size, self.folder, self.note = size, folder, note
        self.pending: dict[int, bytes] = {}
        self.pending_bytes = 0
        self.owner = os.getpid()
        self.batches: list[Any] = []  # of the Arrow files that were found
        self.read_paths: set[str] = set()
        self.batch_of, self.row_of = array("i", [-1]) * size, array("I", [0]) * size
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as problem:
                raise SetupError(f"cache_dir: '{folder}' cannot be made ({problem.strerror}).") from None
            self.load()

    def load(self) -> None:
        """Find the files that this or other processes have written since the last look; the newest counts."""
        assert self.folder is not None
        found = [path for path in self.folder.glob("*.arrow") if path.name not in self.read_paths]
        for path in sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name)):
            self.read_paths.add(path.name)
            try:
                batch = read_batch(path)
                positions = batch.column(0).to_pylist()
                if len(positions) != len(set(positions)) or not 0 <= min(positions) <= max(positions) < self.size:
                    raise ValueError("its positions are not of this set")
            except (OSError, ValueError) as problem:
                self.note(f"the cache file '{path}' is damaged and was not used ({problem})")
                continue
            for row, position in enumerate(positions):
                self.batch_of[position], self.row_of[position] = len(self.batches), row
            self.batches.append(batch)

    def get(self, position: int) -> Tokenized | None:
        """The tree at a position, None if it is not known or what is known of it is damaged."""
        if (data := self.pending.get(position)) is not None:
            return unpack_tree(data)
        if not self.has(position):
            return None
        _, checksums, records = self.batches[self.batch_of[position]].columns
        row = self.row_of[position]
        data = records[row].as_py()
        if checksums[row].as_py() == self._checksum(position, data):
            return unpack_tree(data)
        self.note(f"a record in the cache folder '{self.folder}' is damaged and was not used: it is tokenised again")
        self.batch_of[position] = -1
        return None

    def has(self, position: int) -> bool:
        """Whether the tree at a position is known."""
        return position in self.pending or self.batch_of[position] >= 0

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
        import pyarrow as pa

        checksums = [self._checksum(position, data) for position, data in self.pending.items()]
        columns = [list(self.pending), checksums, list(self.pending.values())]
        arrays = [pa.array(column, field.type) for column, field in zip(columns, schema(), strict=True)]
        batch = pa.record_batch(arrays, schema=schema())
        try:
            path = self.folder / f"{uuid.uuid4().hex}.arrow"
            with written_beside(path) as file, pa.ipc.new_file(file, batch.schema) as writer:
                writer.write_batch(batch)
        except OSError as problem:
            self.note(f"the cache folder '{self.folder}' cannot be written ({problem.strerror})")
            return
        self.load()
        self.pending, self.pending_bytes = {}, 0

    def _checksum(self, position: int, data: bytes) -> int:
        """CRC-32 of the set, the position in it, and the record."""
        assert self.folder is not None
        return zlib.crc32(data, zlib.crc32(f"{self.folder.name} {position}".encode()))

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the folder's lock: of several processes with the same set, one tokenises and the others then read."""
        if self.folder is None:
            yield
            return
        with locked(self.folder, self.note) as mine:
            if mine:
                self.load()
            yield
            if mine:
                self.flush()

    def __reduce__(self) -> Any:  # a mapped file cannot be pickled: a spawned worker looks into the folder itself
        return TreeStore, (self.size, self.folder, self.note)


def schema() -> Any:
    """Columns of a file of trees: position in the set, checksum, packed tree."""
    import pyarrow as pa

    return pa.schema([("position", pa.int64()), ("crc32", pa.uint32()), ("tree", pa.large_binary())])


def read_batch(path: Path) -> Any:
    """The one record batch of a file, mapped and with offsets that lie within it; raises `OSError`, `ValueError`."""
    import pyarrow as pa

    try:
        file = pa.ipc.open_file(pa.memory_map(str(path)))
        if file.schema != schema() or file.num_record_batches != 1:
            raise ValueError("it does not hold trees")
        batch = file.get_batch(0)
        batch.validate(full=True)
    except pa.ArrowException as problem:
        raise ValueError(first_line(problem)) from None
    if any(column.null_count for column in batch.columns):
        raise ValueError("a value is missing")
    return batch
