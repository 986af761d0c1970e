"""How many bytes an Arrow file unpacks to, from what its messages say of themselves: nothing is unpacked.

Each message has a flatbuffer (github.com/apache/arrow, format/Message.fbs and Schema.fbs) that names the places of its
buffers. A buffer of a compressed message begins with the number of bytes that it unpacks to.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

MAGIC = b"ARROW1\0\0"
"""What the file form begins with; the stream form follows it."""
DICTIONARY, RECORDS = 2, 3
"""Kinds of messages that hold buffers."""
AS_IT_IS = -1
"""In place of a size: the buffer is not compressed."""


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
