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
from io import FileIO
from pathlib import Path
from typing import Any

from strop.data.findings import Counted
from strop.data.kinds import FORMS, form_of, names_of, rename_hint
from strop.data.layouts import adapt
from strop.data.options import TokenizeOptions
from strop.data.rows import ListRows, Rows, from_json
from strop.errors import DataError
from strop.records import Row

LONG_NUMBER = "a number has thousands of digits. Write it as a string."
JSON_COLUMNS = frozenset(
    {"messages", "conversations", "prompt", "completion", "chosen", "rejected", "completions", "labels"}
)


class RepeatedKey(ValueError):
    """A JSON object names a key twice. Turned into a message about its line; it never reaches a user."""


PLAIN = json.JSONDecoder()


class LineRows(Rows):
    """A file with a row per line, read on demand: only line offsets are held."""

    _file: FileIO | None = None

    def __init__(self, path: Path, as_json: bool = True) -> None:
        self.path, self.as_json, self.source = path, as_json, path.name
        self.offsets, self.numbers = array("Q"), array("Q")
        trouble = Counted()
        for number, offset, raw in _lines(path):
            cause = _line_trouble(raw, as_json)
            if cause is not None:
                trouble.add(number, cause)
            else:
                self.offsets.append(offset)
                self.numbers.append(number)
        if trouble.count:
            raise _line_error(path, trouble, "cannot be read", self.row(0) if self.offsets else None)
        if not self.offsets:
            raise DataError(f"{path}: the file holds no rows. Check that it was written to the end.")

    def __len__(self) -> int:
        return len(self.offsets)

    def where(self, index: int) -> str:
        return f"{self.source}, line {self.numbers[index]}"

    def row(self, index: int) -> Row:
        file = self._file = self._file or self.path.open("rb", buffering=0)
        start, *after = self.offsets[index : index + 2]
        end = after[0] if after else os.fstat(file.fileno()).st_size
        # A bad line or blank lines may lie between two rows; the row is the first line of what is read.
        raw = _read_at(file, start, end - start).split(b"\n", 1)[0]
        try:
            return _parse_line(raw, self.as_json)
        except ValueError:
            raise DataError(f"{self.where(index)}: '{self.path}' changed while it was being used.") from None

    def __iter__(self) -> Iterator[Row]:
        return (_parse_line(raw, self.as_json) for _, _, raw in _lines(self.path))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None}

    def __del__(self) -> None:
        if self._file is not None:
            self._file.close()


def _read_at(file: FileIO, start: int, size: int) -> bytes:
    """Bytes of a file from a place on.

    In one call where there is one: threads and forked processes share the place that a file is at, so that the `seek`
    of one would come between that and the `read` of another.
    """
    if hasattr(os, "pread"):
        return os.pread(file.fileno(), max(size, 0), start)
    file.seek(start)
    return file.read(max(size, 0))


def _lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """The lines of a file that are not blank: number from 1, place in the file, bytes."""
    offset = 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if not _is_blank(raw):
                yield number, offset, raw
            offset += len(raw)


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
        twice = first_repeated([key for key, _ in pairs])
        raise RepeatedKey(f"an object has the key {twice!r} twice. Keep one of the two values.")
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


def _line_error(path: Path, trouble: Counted, what: str, good: Row | None = None) -> DataError:
    """One error for all lines, the first ones in full; and for the columns of a good row, if none is known."""
    total = trouble.count
    lines = [f"  - {path.name}, line {number}, {cause}" for number, cause in trouble.first]
    more = [f"  ... and {total - len(lines)} more"] if total > len(lines) else []
    if good is not None and form_of(adapt(good, None, TokenizeOptions())[0], FORMS, TokenizeOptions()) is None:
        more.append(f"  The other lines have no known columns either: found {names_of(good)}.{rename_hint(good)}")
    error = DataError("\n".join([f"{path}: {total} line{'s' if total > 1 else ''} {what}.", *lines, *more]))
    error.good_row = good  # type: ignore[attr-defined]
    return error


def read_json(path: Path, split: str) -> Rows:
    """Rows of a `.json` file: an array of objects, an object of splits, or JSON Lines under the wrong name."""
    raw = path.read_bytes()
    try:
        value = STRICT.decode(_decoded(raw, path))
    except DataError:
        raise
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
    rows, lines, trouble = [], array("Q"), Counted()
    reader = csv.reader(_decoded_lines(path), delimiter=delimiter, strict=True)
    limit = csv.field_size_limit(2**31 - 1)
    try:
        header = _header(next(reader, None), path, delimiter)
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                trouble.add(reader.line_num, f"{len(cells)} cells, but the header names {len(header)} columns")
                continue
            named = zip(header, cells, strict=True)
            rows.append({name: from_json(text, "[") if name in JSON_COLUMNS else text for name, text in named})
            lines.append(reader.line_num)
    except csv.Error as problem:
        line = reader.line_num
        raise DataError(f"{path}: line {line}: {problem}. Quote cells that hold quotes or line breaks.") from None
    finally:
        csv.field_size_limit(limit)
    if trouble.count:
        raise _line_error(path, trouble, "cannot be fitted to the header (quote cells that hold the delimiter)")
    if not rows:
        raise DataError(f"{path}: the file holds a header and no rows.")
    return ListRows(rows, path.name, lines)


def _decoded_lines(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if b"\x00" in raw:
                raise DataError(f"{path}: line {number}: a zero byte: the file is damaged. Write it again.")
            yield _decoded(raw, path, number)


def _decoded(raw: bytes, path: Path, line: int = 1) -> str:
    """The text of bytes that begin with a line of a file; raises `DataError` that names the line that is no text."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        text = problem.object  # without the mark at the start
        line += text.count(b"\n", 0, problem.start)
        byte = text[problem.start]
        raise DataError(f"{path}: line {line}: byte 0x{byte:02x} is not valid UTF-8. Save it as UTF-8.") from None


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
