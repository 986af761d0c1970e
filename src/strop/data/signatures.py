"""What a file is by its first bytes, whatever its name says: a download that went wrong is named, not parsed."""

from __future__ import annotations

from pathlib import Path

from strop.errors import DataError

HEAD_BYTES = 65536
"""How much of a file is looked at."""
COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"BZh": ("bzip2", "bunzip2"),
    b"PK\x03\x04": ("zip", "unzip"),
    b"\x28\xb5\x2f\xfd": ("Zstandard", "zstd -d"),
    b"\xfd7zXZ\x00": ("xz", "unxz"),
}
"""First bytes of packed files: what packed them, what unpacks them."""
TABLES = {b"PAR1": "Parquet", b"ARROW1": "Arrow"}
POINTER = b"version https://git-lfs"


def refuse_disguised(path: Path) -> None:
    """Raise `DataError` for a file that is not of the kind its name says, and for text that is not UTF-8 text."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    said = _disguise(head, path.suffix.lower())
    if said is not None:
        raise DataError(f"{path}: {said}")


def _disguise(head: bytes, suffix: str) -> str | None:
    """What the file is instead, and what to do; None if nothing speaks against its name."""
    for magic, (name, command) in COMPRESSED.items():
        if head.startswith(magic):
            return f"the file is packed by {name}, whatever its name says. Unpack it first ({command})."
    for magic, name in TABLES.items():
        if head.startswith(magic) and suffix != f".{name.lower()}":
            return f"the file is a {name} file. Rename it to end in .{name.lower()}."
    if head.startswith(POINTER):
        return "the file is a Git LFS pointer, not the data. Fetch the data (git lfs pull)."
    if head.lstrip()[:15].lower().startswith((b"<!doctype", b"<html")):
        return "the file is a web page, not data. Download the raw file."
    return None if suffix in (".parquet", ".arrow") else _encoding(head)


def _encoding(head: bytes) -> str | None:
    for mark, name in ((b"\xff\xfe\x00\x00", "UTF-32"), (b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16")):
        if head.startswith(mark):
            return f"the file is {name}. Save it as UTF-8 (iconv -f {name} -t UTF-8)."
    if head[:4] == b"\x00\x00\xfe\xff":
        return "the file is UTF-32. Save it as UTF-8 (iconv -f UTF-32 -t UTF-8)."
    zeros = head.count(0)
    at_even, at_odd = head[::2].count(0), head[1::2].count(0)
    if zeros * 3 >= len(head) > 3 and min(at_even, at_odd) * 3 <= max(at_even, at_odd) * 2:
        return "every other byte is zero: the file is UTF-16 or UTF-32. Save it as UTF-8 (iconv -f UTF-16LE -t UTF-8)."
    if zeros:
        line = head.count(b"\n", 0, head.index(0)) + 1
        return f"line {line} holds a zero byte: the file is no text, or was not written to its end. Write it again."
    bare = head.strip()
    if b"\r" in bare and b"\n" not in head:
        return "its lines end in carriage returns alone. Save it with Unix line ends (tr '\\r' '\\n')."
    return None
