"""Arrow data: Parquet and Arrow files, and `datasets.Dataset` objects. pyarrow and datasets are imported when used."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from strop.data.arrow_sizes import shared_bytes, unpacked_bytes
from strop.data.padding import cleaner_of_rows, cleaner_of_schema
from strop.data.rows import ListRows, Rows, RowStream
from strop.errors import DataError
from strop.plain_text import first_line
from strop.records import Row

BATCH_ROWS, TABLE_ROWS = 64, 1024
"""Rows of a Parquet file, and of a table, that are unpacked at a time."""
INDEX_ROWS = 8192
"""Rows of a Parquet file whose indices are counted at a time."""
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
        self.table, self.source, self.clean = table, source, cleaner_of_schema(table.schema)

    def __len__(self) -> int:
        return self.table.num_rows

    def row(self, index: int) -> Row:
        return self.clean(_plain_rows(self.table.slice(index, 1), self.source, index)[0])

    def __iter__(self) -> Iterator[Row]:
        first = 0
        for batch in self.table.to_batches(max_chunksize=TABLE_ROWS):
            yield from map(self.clean, _plain_rows(batch, self.source, first))
            first += batch.num_rows


def read_table(table: Any, source: str) -> Rows:
    """The rows of a pyarrow Table or RecordBatch."""
    import pyarrow as pa

    return TableRows(pa.Table.from_batches([table]) if isinstance(table, pa.RecordBatch) else table, source)


class DatasetRows(Rows):
    """A map-style `datasets.Dataset`: the rows that indexing it gives, as plain values."""

    def __init__(self, dataset: Any, source: str = "dataset") -> None:
        shown = dataset.format["columns"]  # a format may show some of the columns only
        if dataset.format["output_all_columns"]:
            shown = None  # it converts some of them, and shows the others too
        self.dataset, self.source = dataset.with_format(None, columns=shown), source
        self.clean = cleaner_of_schema(dataset.features.arrow_schema)

    def __len__(self) -> int:
        return len(self.dataset)

    def row(self, index: int) -> Row:
        return self.clean(self.dataset[index])

    def __iter__(self) -> Iterator[Row]:
        for batch in self.dataset.iter(batch_size=1024):  # ten times as quick as row by row, which checking feels
            names = list(batch)
            for values in zip(*batch.values(), strict=True):
                yield self.clean(dict(zip(names, values, strict=True)))


def read_dataset(dataset: Any, source: str = "dataset") -> Rows:
    """The rows of a map-style `datasets.Dataset`; those of one with a transform are read once and kept."""
    if dataset.format["type"] != "custom":
        return DatasetRows(dataset, source)
    rows = ListRows([dataset[index] for index in range(len(dataset))], source)
    rows.notes = ("the dataset has a transform: every row was read through it once, and is the same in every epoch",)
    return rows


def stream_dataset(dataset: Any, source: str = "dataset") -> RowStream:
    """The rows of a `datasets.IterableDataset`, as plain values."""
    dataset = dataset.with_format(None)
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

    with _named_where_unreadable(path, "Parquet"):
        if path.stat().st_size < LARGE_FILE_BYTES:
            table = pa.Table.from_batches(_unpacked(path), pq.read_schema(path))
        else:
            table = _mapped(path)
        return TableRows(_bounded(table, path), path.name)


def _unpacked(path: Path) -> Iterator[Any]:
    """The batches of a Parquet file; raises `DataError` before a small file unpacks without end."""
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    _refuse_flood(path, _least_bytes(file))
    shared = _shared_texts(file, path)
    indices = pq.ParquetFile(path, read_dictionary=shared)
    ahead = size = 0
    for group in range(file.num_row_groups):
        for batch in indices.iter_batches(INDEX_ROWS, row_groups=[group], columns=shared) if shared else ():
            ahead += int(shared_bytes(batch).sum())
            _refuse_flood(path, ahead)
        for batch in file.iter_batches(BATCH_ROWS, row_groups=[group]):
            size += batch.nbytes
            _refuse_flood(path, size)
            yield batch


def _least_bytes(file: Any) -> int:
    """What a Parquet file takes at least, by the counts of its metadata: one row may hold a list without end.

    DELTA_BYTE_ARRAY writes a text as the difference from the one before: there each is taken to be as long as all
    that is written, and a row to hold as many as the rows of its group do on average.
    """
    size = 0.0
    for number in range(file.num_row_groups):
        group = file.metadata.row_group(number)
        for place in range(group.num_columns):
            column = group.column(place)
            width = VALUE_BYTES.get(column.physical_type) or max(file.schema.column(place).length, 4)
            a_row = max(column.num_values / max(group.num_rows, 1), 1) if "DELTA_BYTE_ARRAY" in column.encodings else 1
            size += max(column.num_values * width, column.total_uncompressed_size * a_row)
    return int(size)


def _shared_texts(file: Any, path: Path) -> list[str]:
    """The columns of texts whose dictionaries could unpack without end: their indices are counted first."""
    groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
    columns = [group.column(place) for group in groups for place in range(group.num_columns)]
    texts = [column for column in columns if column.physical_type == "BYTE_ARRAY" and column.has_dictionary_page]
    if sum(column.num_values * column.total_uncompressed_size for column in texts) <= _most_bytes(path):
        return []
    return sorted({column.path_in_schema for column in texts})


def _most_bytes(path: Path) -> int:
    """What a file may unpack to."""
    return max(UNPACKED_BYTES, UNPACKED_RATIO * path.stat().st_size)


def _refuse_flood(path: Path, size: int) -> None:
    """Raise `DataError` where a small file unpacks to so many bytes."""
    if size > _most_bytes(path):
        packed = path.stat().st_size
        raise DataError(
            f"{path}: {packed:,} bytes unpack to {size:,} or more ({size // packed:,} times as many): the same "
            "values again and again. It is not read; write the file again, or use a text file."
        )


def refuse_packed(path: Path) -> None:
    """Raise `DataError` where a small Arrow file has compressed buffers that unpack without end."""
    _refuse_flood(path, unpacked_bytes(path))


def _bounded(table: Any, path: Path) -> Any:
    """The sound table, once the rows that are unpacked at a time are known to be no flood."""
    _refuse_flood(path, table.num_rows * 8)  # a column of nulls has rows without bytes
    sizes = shared_bytes(_sound(table))
    if len(sizes):
        _refuse_flood(path, int(np.add.reduceat(sizes, range(0, len(sizes), TABLE_ROWS)).max()))
    return table


def _sound(table: Any) -> Any:
    """The table, once its offsets and texts are known to be in order: those of a damaged file end the process."""
    table.validate(full=True)
    names = table.schema.names
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"it has the column {twice[0]!r} twice")
    return table


def _mapped(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    handle, name = tempfile.mkstemp(suffix=".arrow", prefix="strop-")
    os.close(handle)
    try:
        with pa.OSFile(name, "wb") as sink, pa.ipc.new_file(sink, pq.read_schema(path)) as writer:
            for batch in _unpacked(path):
                writer.write_batch(batch)
    except BaseException:  # refused, interrupted, a full disk: what was unpacked so far is nobody's
        os.unlink(name)
        raise
    table = pa.ipc.open_file(pa.memory_map(name)).read_all()
    weakref.finalize(table, _remove_if_mine, name, os.getpid())
    return table


def _remove_if_mine(name: str, owner: int) -> None:
    if os.getpid() == owner:
        Path(name).unlink(missing_ok=True)


def read_arrow(path: Path) -> Rows:
    """Rows of an Arrow file, in the stream form that `datasets` writes or in the file form."""
    import pyarrow as pa

    with _named_where_unreadable(path, "Arrow"):
        refuse_packed(path)
        source = pa.memory_map(str(path))
        try:
            table = pa.ipc.open_stream(source).read_all()
        except pa.ArrowInvalid:
            table = pa.ipc.open_file(source).read_all()
        return TableRows(_bounded(table, path), path.name)


@contextmanager
def _named_where_unreadable(path: Path, form: str) -> Iterator[None]:
    """Within it, what pyarrow and the disk raise becomes a `DataError` that names the file and the cause."""
    import pyarrow as pa

    try:
        yield
    except DataError:
        raise
    except (pa.ArrowException, OSError, ValueError) as problem:
        cause = "the file is empty" if path.stat().st_size == 0 else first_line(problem).rstrip(".")
        raise DataError(f"{path}: not a readable {form} file: {cause}. Write or download it again.") from None
