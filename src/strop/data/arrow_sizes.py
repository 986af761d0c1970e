"""How many bytes Arrow data unpack to: a file by what its messages say of themselves, values that are stored once and
meant many times by their indices. Nothing is unpacked.

Each message has a flatbuffer (github.com/apache/arrow, format/Message.fbs and Schema.fbs) that names the places of its
buffers. A buffer of a compressed message begins with the number of bytes that it unpacks to.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

import numpy as np

MAGIC = b"ARROW1\0\0"
"""What the file form begins with; the stream form follows it."""
DICTIONARY, RECORDS = 2, 3
"""Kinds of messages that hold buffers."""
AS_IT_IS = -1
"""In place of a size: the buffer is not compressed."""
SHARED = re.compile(r"dictionary<|run_end_encoded<|_view|union<|(?<!not )\bnull\b")
"""Types whose values may be stored once and meant many times, or take no bytes at all."""
VALUE_BYTES = 8
"""What a value that is no text takes as a Python value, at least: the place that it stands in."""
MOST_VALUES = 2**28
"""More values than this in one array, with most of them stored nowhere, are counted no further."""


def unpacked_bytes(path: Path) -> int:
    """The bytes that all compressed buffers of an Arrow file unpack to; 0 where none is compressed.

    Raises:
        ValueError: the messages do not hold what they say.
    """
    import pyarrow as pa

    with pa.memory_map(str(path)) as source:
        if source.read(len(MAGIC)) != MAGIC:
            source.seek(0)
        try:
            return sum(_unpacked(message) for message in pa.ipc.MessageReader.open_stream(source))
        except struct.error as problem:
            raise ValueError(f"a message ends too early ({problem})") from None


def shared_bytes(data: Any) -> np.ndarray:
    """(rows,) The bytes that each row of a table or batch unpacks to, by its columns of shared values alone.

    Raises:
        ValueError: a column stands for values without end, or is a union.
    """
    total = np.zeros(data.num_rows if any(SHARED.search(str(kind)) for kind in data.schema.types) else 0, np.int64)
    for column, kind in zip(data.columns, data.schema.types, strict=True):
        if SHARED.search(str(kind)):
            parts = [_bytes_of_each(chunk) for chunk in getattr(column, "chunks", [column])]
            total = total + (np.concatenate(parts) if parts else 0)
    return total


def _bytes_of_each(array: Any) -> np.ndarray:
    """(len(array),) The bytes that each value of an array unpacks to."""
    import pyarrow.compute as pc
    from pyarrow import types

    kind, count = array.type, len(array)
    if count > MOST_VALUES:
        raise ValueError(f"a column of {kind} stands for {count:,} values")
    if types.is_dictionary(kind):
        sizes = np.append(_bytes_of_each(array.dictionary), 0)
        return sizes[pc.fill_null(array.indices.cast("int64"), len(sizes) - 1).to_numpy()]
    if types.is_run_end_encoded(kind):
        ends = np.clip(array.run_ends.to_numpy().astype(np.int64) - array.offset, 0, count)
        return np.repeat(_bytes_of_each(array.values), np.diff(ends, prepend=0))
    if types.is_struct(kind):
        return sum((_bytes_of_each(field) for field in array.flatten()), np.full(count, VALUE_BYTES))
    if types.is_fixed_size_list(kind):
        before = _running(array.values)
        starts = (array.offset + np.arange(count)) * kind.list_size
        return VALUE_BYTES + before[starts + kind.list_size] - before[starts]
    if types.is_nested(kind) and not types.is_union(kind):  # the kinds of lists, and maps
        before, starts = _running(array.values), array.offsets.to_numpy()
        ends = starts + array.sizes.to_numpy() if "list_view" in str(kind)[:16] else starts[1:]
        return VALUE_BYTES + before[ends] - before[starts[: len(ends)]]
    if types.is_union(kind):
        raise ValueError("it has a column of a union type. Write each kind of value to a column of its own")
    if str(kind) in ("string_view", "binary_view"):
        views = np.frombuffer(array.buffers()[1] or b"", "<i4").reshape(-1, 4)
        return views[array.offset : array.offset + count, 0].astype(np.int64)
    if types.is_binary(kind) or types.is_string(kind) or types.is_large_binary(kind) or types.is_large_string(kind):
        return pc.fill_null(pc.binary_length(array), 0).to_numpy().astype(np.int64)
    return np.full(count, VALUE_BYTES)


def _running(values: Any) -> np.ndarray:
    """(len(values) + 1,) The bytes of all values before each."""
    return np.append(0, np.cumsum(_bytes_of_each(values)))


def _unpacked(message: Any) -> int:
    """The bytes of one message."""
    about, body = memoryview(message.metadata), memoryview(message.body if message.body is not None else b"")
    root = _number("<I", about, 0)
    kind = _field(about, root, 1)
    header = _follow(about, _field(about, root, 2))
    if kind is None or header is None or about[kind] not in (DICTIONARY, RECORDS):
        return 0
    records = header if about[kind] == RECORDS else _follow(about, _field(about, header, 1))
    if records is None or _field(about, records, 3) is None:  # no compression
        return 0
    places = _follow(about, _field(about, records, 2))
    count = _number("<I", about, places) if places is not None else 0
    sizes = []
    for number in range(count):
        offset, length = struct.unpack_from("<qq", about, (places or 0) + 4 + 16 * number)
        sizes.append(_number("<q", body, offset) if length else 0)
    return sum(size for size in sizes if size != AS_IT_IS)


def _field(about: memoryview, table: int, number: int) -> int | None:
    """The place of a field of a table; None where the table has it not."""
    vtable = table - _number("<i", about, table)
    entry = 4 + 2 * number
    offset = _number("<H", about, vtable + entry) if entry < _number("<H", about, vtable) else 0
    return table + offset if offset else None


def _follow(about: memoryview, place: int | None) -> int | None:
    """The table or vector that a field points to."""
    return None if place is None else place + _number("<I", about, place)


def _number(form: str, data: memoryview, place: int) -> int:
    return int(struct.unpack_from(form, data, place)[0])
