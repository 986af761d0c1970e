"""Local text files: JSON Lines, JSON, CSV, TSV and plain text, read with our own checks.

JSON Lines and plain text keep 16 bytes a row in memory and read a row when it is asked for. Every broken line is
found before the first row is used, and one `DataError` names them: file, line, column, cause, fix.
"""

from __future__ import annotations

import csv
import json
import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from strop.data.kinds import FORMS, form_of, names_of, rename_hint
from strop.data.layouts import adapt
from strop.data.options import TokenizeOptions
from strop.data.rows import ListRows, Rows, RowStream
from strop.errors import DataError
from strop.records import Row

Trouble = tuple[int, str]
"""Line number (from 1) and what is wrong there."""
LONG_NUMBER = "a number has thousands of digits. Write it as a string."
JSON_COLUMNS = frozenset(
    {"messages", "conversations", "prompt", "completion", "chosen", "rejected", "completions", "labels"}
)


class RepeatedKey(ValueError):
    """A JSON object names a key twice. Turned into a message about its line; it never reaches a user."""

    def __str__(self) -> str:
        return f"an object has the key {self.args[0]!r} twice. Keep one of the two values."


PLAIN = json.JSONDecoder()


class LineRows(Rows):
    """A file with a row per line, read on demand: only line offsets are held."""

    def __init__(self, path: Path, as_json: bool = True) -> None:
        self.path, self.as_json, self.source = path, as_json, path.name
        self._fd: int | None = None
        self._owner = 0
        self.offsets, self.numbers = array("Q"), array("Q")
        trouble: list[Trouble] = []
        offset = bad = 0
        with path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                start, offset = offset, offset + len(raw)
                if _is_blank(raw):
                    continue
                found = _line_trouble(raw, as_json)
                if found is None:
                    self.offsets.append(start)
                    self.numbers.append(number)
                else:
                    bad += 1
                    if len(trouble) < 21:
                        trouble.append((number, found))
        self.size = offset
        if bad:
            raise _line_error(path, trouble, bad, "cannot be read", self.row(0) if self.offsets else None)
        if not self.offsets:
            raise DataError(f"{path}: the file holds no rows. Check that it was written to the end.")

    def __len__(self) -> int:
        return len(self.offsets)

    def where(self, index: int) -> str:
        return f"{self.source}, line {self.numbers[index]}"

    def row(self, index: int) -> Row:
        end = self.offsets[index + 1] if index + 1 < len(self.offsets) else self.size
        try:
            return _parse_line(self._read(self.offsets[index], end), self.as_json)
        except ValueError:
            raise DataError(f"{self.where(index)}: '{self.path}' changed while it was being used.") from None

    def __iter__(self) -> Iterator[Row]:
        with self.path.open("rb") as file:
            for raw in file:
                if not _is_blank(raw):
                    yield _parse_line(raw, self.as_json)

    def _read(self, start: int, end: int) -> bytes:
        if self._fd is None or self._owner != os.getpid():
            self._fd, self._owner = os.open(self.path, os.O_RDONLY | getattr(os, "O_BINARY", 0)), os.getpid()
        if hasattr(os, "pread"):
            # A bad line or blank lines may lie between two rows; the row is the first line of what is read.
            return os.pread(self._fd, end - start, start).split(b"\n", 1)[0]
        os.lseek(self._fd, start, os.SEEK_SET)
        return os.read(self._fd, end - start).split(b"\n", 1)[0]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_fd": None}

    def __del__(self) -> None:
        if getattr(self, "_fd", None) is not None and self._owner == os.getpid():
            os.close(self._fd)  # type: ignore[arg-type]


def _is_blank(raw: bytes) -> bool:
    return raw.strip() in (b"", b"\xef\xbb\xbf")


def _parse_line(raw: bytes, as_json: bool, decoder: json.JSONDecoder = PLAIN) -> Row:
    text = raw.decode("utf-8").lstrip("\ufeff")
    return decoder.decode(text) if as_json else {"text": text.rstrip("\r\n")}


def first_repeated(names: list[str]) -> str | None:
    """The first name that stands in a list twice, None if there is none."""
    seen: set[str] = set()
    return next((name for name in names if name in seen or seen.add(name)), None)  # type: ignore[func-returns-value]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of some pairs; raises `RepeatedKey` if one would silently replace another."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise RepeatedKey(first_repeated([key for key, _ in pairs]))
    return found


STRICT = json.JSONDecoder(object_pairs_hook=_unique)
"""Reads a line the first time, when it is checked: a key that is there twice is an error."""


def _line_trouble(raw: bytes, as_json: bool) -> str | None:
    """What is wrong with a line, None if nothing is."""
    if b"\x00" in raw:
        return f"column {raw.index(0) + 1}: a zero byte: the file was not written to its end. Write it again."
    try:
        value = _parse_line(raw, as_json, STRICT)
    except UnicodeDecodeError as problem:
        return (
            f"column {problem.start + 1}: byte 0x{raw[problem.start]:02x} is not valid UTF-8. "
            "Save the file as UTF-8 (iconv -f LATIN1 -t UTF-8)."
        )
    except json.JSONDecodeError as problem:
        return f"column {problem.colno}: not valid JSON: {problem.msg}. {_json_hint(problem)}"
    except RecursionError:
        return "column 1: JSON nested too deeply. A row is a flat object of columns."
    except RepeatedKey as problem:
        return f"column 1: {problem}"
    except ValueError:  # more digits than Python converts
        return f"column 1: not valid JSON: {LONG_NUMBER}"
    if not isinstance(value, dict):
        return f'column 1: a JSON {_json_name(value)}, not an object. Write one {{"column": value, ...}} per line.'
    return None


def _json_name(value: Any) -> str:
    names = {list: "array", str: "string", bool: "boolean", int: "number", float: "number", type(None): "null"}
    return names.get(type(value), type(value).__name__)


def _json_hint(problem: json.JSONDecodeError) -> str:
    line = problem.doc.strip()
    if problem.msg.startswith("Extra data"):
        return "Put each object on a line of its own."
    if line in ("[", "]", "{", "}", "},") or (line.startswith("[") and line.endswith(",")):
        return "A JSON array over many lines belongs in a .json file."
    if line.startswith("{'"):
        return "Use double quotes: this looks like a printed Python dict; write it with json.dumps."
    if "Invalid control character" in problem.msg:
        return "Escape line breaks and tabs inside strings (json.dumps does)."
    return "Write each row with json.dumps."


def _line_error(path: Path, trouble: list[Trouble], total: int, what: str, good: Row | None = None) -> DataError:
    """One error for `total` lines, the first twenty in full; and for the columns of a good row, if none is known."""
    lines = [f"  - {path.name}, line {number}, {cause}" for number, cause in trouble[:20]]
    more = [f"  ... and {total - 20} more"] if total > 20 else []
    if good is not None and form_of(adapt(good, None, TokenizeOptions())[0], FORMS, TokenizeOptions()) is None:
        more.append(f"  The other lines have no known columns either: found {names_of(good)}.{rename_hint(good)}")
    error = DataError("\n".join([f"{path}: {total} line{'s' if total > 1 else ''} {what}.", *lines, *more]))
    error.good_row = good  # type: ignore[attr-defined]
    return error


def stream_lines(path: Path, as_json: bool = True) -> RowStream:
    """The rows of a line file from the start, each checked when it is reached."""

    def start() -> Iterator[Row]:
        with path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                if _is_blank(raw):
                    continue
                cause = _line_trouble(raw, as_json)
                if cause is not None:
                    raise _line_error(path, [(number, cause)], 1, "cannot be read")
                yield _parse_line(raw, as_json)

    return RowStream(start, path.name)


def read_json(path: Path, split: str) -> Rows:
    """Rows of a `.json` file: an array of objects, an object of splits, or JSON Lines under the wrong name."""
    raw = path.read_bytes()
    try:
        value = STRICT.decode(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as problem:
        line = raw.count(b"\n", 0, problem.start) + 1
        raise DataError(
            f"{path}: line {line}: byte 0x{raw[problem.start]:02x} is not valid UTF-8. Save it as UTF-8."
        ) from None
    except RecursionError:
        raise DataError(f"{path}: JSON nested too deeply. Write an array of flat objects.") from None
    except json.JSONDecodeError as problem:
        if problem.msg.startswith("Extra data"):
            return LineRows(path)
        if _is_blank(raw):
            raise DataError(f"{path}: the file is empty. Check that it was written to the end.") from None
        raise DataError(
            f"{path}: line {problem.lineno}, column {problem.colno}: not valid JSON: {problem.msg}. "
            "Write the file with json.dump."
        ) from None
    except RepeatedKey as problem:
        raise DataError(f"{path}: {problem}") from None
    except ValueError:  # more digits than Python converts
        raise DataError(f"{path}: not valid JSON: {LONG_NUMBER}") from None
    return ListRows(_rows_of_json(value, split, path), path.name)


def _rows_of_json(value: Any, split: str, path: Path) -> list[Row]:
    """The rows in the value of a `.json` file."""
    if isinstance(value, dict):
        _refuse_columns(value, path)
        splits = [key for key, rows in value.items() if isinstance(rows, list) and rows and isinstance(rows[0], dict)]
        if split in splits or (len(splits) == 1 and len(value) == 1):
            value = value[split if split in splits else splits[0]]
        else:
            value = [value]
    if not isinstance(value, list) or not value:
        raise DataError(f"{path}: holds {'an empty array' if value == [] else 'a JSON ' + _json_name(value)}, no rows.")
    wrong = [(i, _json_name(row)) for i, row in enumerate(value) if not isinstance(row, dict)]
    if wrong:
        problems = [f"{path.name}, row {i}: a JSON {kind}, not an object" for i, kind in wrong]
        title = f"{len(wrong)} rows are not objects" if len(wrong) > 1 else "1 row is not an object"
        raise DataError.collect(f"{path}: {title}. Write each row as {{column: value, ...}}.", problems)
    return value


def _refuse_columns(value: dict[str, Any], path: Path) -> None:
    """Raise `DataError` for an object of columns: lists of one length, none of them of rows."""
    lists = [column for column in value.values() if isinstance(column, list) and column]
    texts = [column for column in lists if all(isinstance(item, str) for item in column)]
    if len(value) > 1 and len(lists) == len(value) and len({*map(len, lists)}) == 1 and len(texts) > 1:
        raise DataError(
            f"{path}: an object of columns ({', '.join(value)}). Write an array of rows instead: "
            "[{column: value, ...}, ...]."
        )


def read_table(path: Path, delimiter: str) -> Rows:
    """Rows of a CSV or TSV file with a header line; cells that hold JSON messages or lists are parsed."""
    rows, lines, trouble, bad = [], array("Q"), [], 0
    reader = csv.reader(_decoded_lines(path), delimiter=delimiter, strict=True)
    limit = csv.field_size_limit(2**31 - 1)
    try:
        header = _header(next(reader, None), path, delimiter)
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                bad += 1
                if bad <= 20:
                    trouble.append((reader.line_num, f"{len(cells)} cells, but the header names {len(header)} columns"))
                continue
            rows.append({name: _cell(name, text) for name, text in zip(header, cells, strict=True)})
            lines.append(reader.line_num)
    except csv.Error as problem:
        line = reader.line_num
        raise DataError(f"{path}: line {line}: {problem}. Quote cells that hold quotes or line breaks.") from None
    finally:
        csv.field_size_limit(limit)
    if bad:
        raise _line_error(path, trouble, bad, "cannot be fitted to the header (quote cells that hold the delimiter)")
    if not rows:
        raise DataError(f"{path}: the file holds a header and no rows.")
    return ListRows(rows, path.name, lines)


def _decoded_lines(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if b"\x00" in raw:
                raise DataError(f"{path}: line {number}: a zero byte: the file is damaged. Write it again.")
            try:
                yield raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as problem:
                raise DataError(
                    f"{path}: line {number}: byte 0x{raw[problem.start]:02x} is not valid UTF-8. Save it as UTF-8."
                ) from None


def _header(header: list[str] | None, path: Path, delimiter: str) -> list[str]:
    if not header:
        raise DataError(f"{path}: the file is empty; its first line must name the columns.")
    names = [name.strip() for name in header]
    twice = first_repeated(names)
    if twice or "" in names:
        cause = f"names the column {twice!r} twice" if twice else "has a column without a name"
        found = names_of(names)
        raise DataError(f"{path}: line 1: the header {cause}; found {found}. Give every column a name of its own.")
    for other, suffix in ((",", ".csv"), ("\t", ".tsv"), (";", None), ("|", None)):
        if len(names) == 1 and other != delimiter and len(names[0].split(other)) > 1:
            fix = f"Rename it to end in {suffix}" if suffix else "Save it with commas"
            raise DataError(f"{path}: line 1: {names[0]!r} is one column: cells are separated by {other!r}. {fix}.")
    return names


def _cell(name: str, text: str) -> Any:
    if name in JSON_COLUMNS and text.lstrip().startswith("["):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return text
        return value if isinstance(value, list) else text
    return text
