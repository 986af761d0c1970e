"""Arrow data: Parquet and Arrow files, and `datasets.Dataset` objects. pyarrow and datasets are imported when used."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from strop.data.rows import Rows, RowStream
from strop.errors import DataError
from strop.records import Row

LARGE_FILE_BYTES = 256 * 2**20
"""A larger Parquet file is unpacked into a temporary Arrow file and mapped, so that it need not fit into memory."""


def prune(value: Any) -> Any:
    """A nested value without the None that Arrow writes where an object of a column lacks a key others have."""
    if isinstance(value, dict):
        return {key: prune(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [prune(item) for item in value]
    return value


def _clean(row: Row) -> Row:
    return {key: prune(item) if isinstance(item, list | dict) else item for key, item in row.items()}


class TableRows(Rows):
    """A pyarrow Table (in memory or memory-mapped)."""

    def __init__(self, table: Any, source: str) -> None:
        if table.num_rows == 0:
            raise DataError(f"{source}: the file holds no rows.")
        self.table, self.source = table, source

    def __len__(self) -> int:
        return self.table.num_rows

    def row(self, index: int) -> Row:
        return _clean(self.table.slice(index, 1).to_pylist()[0])

    def __iter__(self) -> Iterator[Row]:
        for batch in self.table.to_batches(max_chunksize=1024):
            yield from map(_clean, batch.to_pylist())


class DatasetRows(Rows):
    """A map-style `datasets.Dataset`."""

    def __init__(self, dataset: Any, source: str = "dataset") -> None:
        self.dataset, self.source = dataset.with_format(None), source

    def __len__(self) -> int:
        return len(self.dataset)

    def row(self, index: int) -> Row:
        return _clean(self.dataset[index])

    def __iter__(self) -> Iterator[Row]:
        for batch in self.dataset.iter(batch_size=1024):
            names = list(batch)
            for values in zip(*batch.values(), strict=True):
                yield _clean(dict(zip(names, values, strict=True)))


def stream_dataset(dataset: Any, source: str = "dataset") -> RowStream:
    """The rows of a `datasets.IterableDataset`."""
    return RowStream(lambda: map(_clean, iter(dataset)), source)


def read_parquet(path: Path) -> Rows:
    """Rows of a Parquet file; a large one is memory-mapped through a temporary Arrow file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if path.stat().st_size < LARGE_FILE_BYTES:
            return TableRows(pq.read_table(path), path.name)
        return TableRows(_mapped(pq.ParquetFile(path)), path.name)
    except (pa.ArrowException, OSError, ValueError) as problem:
        if isinstance(problem, DataError):
            raise
        raise _unreadable(path, "Parquet", problem) from None


def stream_parquet(path: Path) -> RowStream:
    """The rows of a Parquet file from the start, a batch in memory at a time."""

    def start() -> Iterator[Row]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            for batch in pq.ParquetFile(path).iter_batches(1024):
                yield from map(_clean, batch.to_pylist())
        except (pa.ArrowException, OSError) as problem:
            raise _unreadable(path, "Parquet", problem) from None

    return RowStream(start, path.name)


def _mapped(parquet: Any) -> Any:
    import pyarrow as pa

    handle, name = tempfile.mkstemp(suffix=".arrow", prefix="strop-")
    os.close(handle)
    with pa.OSFile(name, "wb") as sink, pa.ipc.new_file(sink, parquet.schema_arrow) as writer:
        for batch in parquet.iter_batches(4096):
            writer.write_batch(batch)
    table = pa.ipc.open_file(pa.memory_map(name)).read_all()
    weakref.finalize(table, _remove_if_mine, name, os.getpid())
    return table


def _remove_if_mine(name: str, owner: int) -> None:
    if os.getpid() == owner:
        Path(name).unlink(missing_ok=True)


def read_arrow(path: Path) -> Rows:
    """Rows of an Arrow file, in the stream form that `datasets` writes or in the file form."""
    import pyarrow as pa

    try:
        source = pa.memory_map(str(path))
        try:
            return TableRows(pa.ipc.open_stream(source).read_all(), path.name)
        except pa.ArrowInvalid:
            return TableRows(pa.ipc.open_file(source).read_all(), path.name)
    except (pa.ArrowException, OSError, ValueError) as problem:
        if isinstance(problem, DataError):
            raise
        raise _unreadable(path, "Arrow", problem) from None


def _unreadable(path: Path, form: str, problem: Exception) -> DataError:
    cause = "the file is empty" if path.stat().st_size == 0 else str(problem).splitlines()[0].rstrip(".")
    return DataError(f"{path}: not a readable {form} file: {cause}. Write or download it again.")
