"""Arrow data: Parquet and Arrow files, and `datasets.Dataset` objects. pyarrow and datasets are imported when used."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from strop.data.arrow_sizes import unpacked_bytes
from strop.data.padding import cleaner_of_rows, cleaner_of_schema
from strop.data.rows import ListRows, Rows, RowStream
from strop.errors import DataError
from strop.plain_text import first_line
from strop.records import Row

BATCH_ROWS = 64
"""Rows of a Parquet file that are unpacked at a time: one value may be as large as the file's dictionary."""
UNPACKED_BYTES, UNPACKED_RATIO = 2**30, 200
"""A file that unpacks to more than this many bytes, and this many times its size, is no data set."""
VALUE_BYTES = {"BOOLEAN": 0.125, "INT64": 8, "DOUBLE": 8, "INT96": 8}
"""Bytes of an unpacked value of Parquet's types; the others take 4 at least, be it for the offset of a text."""
HEAD = 100
"""Rows of a stream that are looked at to see what Arrow has padded."""
LARGE_FILE_BYTES = 256 * 2**20
"""A larger Parquet file is unpacked into a temporary Arrow file and mapped, so that it need not fit into memory."""


def _plain_rows(part: Any, source: str, first: int) -> list[Row]:
    """The rows of a table or batch as Python values; `first` is the number of its first row."""
    try:
        return part.to_pylist()
    except (ArithmeticError, ValueError) as problem:  # a date beyond the year 9999, two keys of one name
        cause = first_line(problem).rstrip(".")
        place = f"row {first}" if part.num_rows == 1 else f"rows {first} to {first + part.num_rows - 1}"
        raise DataError(
            f"{source}, {place}: a value has no counterpart in Python: {cause}. Drop that column, or save it as text."
        ) from None


class TableRows(Rows):
    """A pyarrow Table (in memory or memory-mapped)."""

    def __init__(self, table: Any, source: str) -> None:
        if table.num_rows == 0:
            raise DataError(f"{source}: the file holds no rows.")
        self.table, self.source = table, source
        self.clean = cleaner_of_schema(table.schema)

    def __len__(self) -> int:
        return self.table.num_rows

    def row(self, index: int) -> Row:
        return self.clean(_plain_rows(self.table.slice(index, 1), self.source, index)[0])

    def __iter__(self) -> Iterator[Row]:
        first = 0
        for batch in self.table.to_batches(max_chunksize=1024):
            yield from map(self.clean, _plain_rows(batch, self.source, first))
            first += batch.num_rows

    def __getstate__(self) -> dict[str, Any]:
        return {"table": self.table, "source": self.source}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


class DatasetRows(Rows):
    """A map-style `datasets.Dataset`: the rows that indexing it gives, as plain values."""

    def __init__(self, dataset: Any, source: str = "dataset") -> None:
        shown = dataset.format["columns"]  # a format may show some of the columns only
        self.dataset, self.source = dataset.with_format(None, columns=shown), source
        self.clean = cleaner_of_schema(dataset.features.arrow_schema)

    def __len__(self) -> int:
        return len(self.dataset)

    def row(self, index: int) -> Row:
        return self.clean(self.dataset[index])

    def __iter__(self) -> Iterator[Row]:
        for batch in self.dataset.iter(batch_size=1024):
            names = list(batch)
            for values in zip(*batch.values(), strict=True):
                yield self.clean(dict(zip(names, values, strict=True)))

    def __getstate__(self) -> dict[str, Any]:
        return {"dataset": self.dataset, "source": self.source}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


def read_dataset(dataset: Any, source: str = "dataset") -> Rows:
    """The rows of a map-style `datasets.Dataset`; those of one with a transform are read once and kept."""
    if dataset.format["type"] != "custom":
        return DatasetRows(dataset, source)
    rows = ListRows([dataset[index] for index in range(len(dataset))], source)
    rows.notes = ("the dataset has a transform: every row was read through it once, and is the same in every epoch",)
    return rows


def stream_dataset(dataset: Any, source: str = "dataset") -> RowStream:
    """The rows of a `datasets.IterableDataset`."""
    if dataset.features is not None:
        clean = cleaner_of_schema(dataset.features.arrow_schema)
        return RowStream(lambda: map(clean, iter(dataset)), source)
    return RowStream(lambda: _cleaned(iter(dataset)), source)


def _cleaned(rows: Iterator[Row]) -> Iterator[Row]:
    head = list(islice(rows, HEAD))
    return map(cleaner_of_rows(head), chain(head, rows))


def read_parquet(path: Path) -> Rows:
    """Rows of a Parquet file; a large one is memory-mapped through a temporary Arrow file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        if path.stat().st_size < LARGE_FILE_BYTES:
            table = pa.Table.from_batches(_unpacked(file, path), file.schema_arrow)
        else:
            table = _mapped(file, path)
        return TableRows(_sound(table), path.name)
    except (pa.ArrowException, OSError, ValueError) as problem:
        if isinstance(problem, DataError):
            raise
        raise _unreadable(path, "Parquet", problem) from None


def _unpacked(file: Any, path: Path) -> Iterator[Any]:
    """The batches of a Parquet file; raises `DataError` where a small file unpacks without end."""
    _refuse_flood(path, _least_bytes(file.metadata))
    size = 0
    for batch in file.iter_batches(BATCH_ROWS):
        size += batch.nbytes
        _refuse_flood(path, size)
        yield batch


def _least_bytes(metadata: Any) -> int:
    """What the numbers of a Parquet file take at least, by their counts: one row may hold a list without end."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    columns = [group.column(i) for group in groups for i in range(group.num_columns)]
    return int(sum(column.num_values * VALUE_BYTES.get(column.physical_type, 4) for column in columns))


def _refuse_flood(path: Path, size: int) -> None:
    """Raise `DataError` where a small file unpacks to so many bytes."""
    packed = path.stat().st_size
    if size > max(UNPACKED_BYTES, UNPACKED_RATIO * packed):
        raise DataError(
            f"{path}: {packed:,} bytes unpack to {size:,} or more ({size // packed:,} times as many): the same "
            "values again and again. It is not read; write the file again, or use a text file."
        )


def _sound(table: Any) -> Any:
    """The table, once its offsets and texts are known to be in order: those of a damaged file end the process."""
    table.validate(full=True)
    names = table.schema.names
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"it has the column {twice[0]!r} twice")
    return table


def stream_parquet(path: Path) -> RowStream:
    """The rows of a Parquet file from the start, a batch in memory at a time."""

    def start() -> Iterator[Row]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            file, first = pq.ParquetFile(path), 0
            _refuse_flood(path, _least_bytes(file.metadata))
            clean = cleaner_of_schema(file.schema_arrow)
            for batch in file.iter_batches(BATCH_ROWS):
                yield from map(clean, _plain_rows(_sound(batch), path.name, first))
                first += batch.num_rows
        except (pa.ArrowException, OSError, ValueError) as problem:
            if isinstance(problem, DataError):
                raise
            raise _unreadable(path, "Parquet", problem) from None

    return RowStream(start, path.name)


def _mapped(parquet: Any, path: Path) -> Any:
    import pyarrow as pa

    handle, name = tempfile.mkstemp(suffix=".arrow", prefix="strop-")
    os.close(handle)
    with pa.OSFile(name, "wb") as sink, pa.ipc.new_file(sink, parquet.schema_arrow) as writer:
        for batch in _unpacked(parquet, path):
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
        _refuse_flood(path, unpacked_bytes(path))
        source = pa.memory_map(str(path))
        try:
            table = pa.ipc.open_stream(source).read_all()
        except pa.ArrowInvalid:
            table = pa.ipc.open_file(source).read_all()
        return TableRows(_sound(table), path.name)
    except (pa.ArrowException, OSError, ValueError) as problem:
        if isinstance(problem, DataError):
            raise
        raise _unreadable(path, "Arrow", problem) from None


def _unreadable(path: Path, form: str, problem: Exception) -> DataError:
    cause = "the file is empty" if path.stat().st_size == 0 else first_line(problem).rstrip(".")
    return DataError(f"{path}: not a readable {form} file: {cause}. Write or download it again.")
