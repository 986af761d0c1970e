"""From whatever the user has to rows: files, folders, hub ids, `datasets` objects, lists."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from strop.data import arrow, textfiles
from strop.data.padding import cleaner_of_rows
from strop.data.rows import JoinedRows, ListRows, Rows, RowStream, deep_plain, map_columns, parse_columns, plain
from strop.data.signatures import refuse_disguised
from strop.errors import DataError, SetupError, did_you_mean
from strop.plain_text import first_line

READERS = (".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".tsv", ".arrow", ".txt")
HEAD = 100
"""Rows that are looked at to see which columns there are."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def load_rows(
    source: Any,
    *,
    split: str = "train",
    name: str | None = None,
    columns: dict[str, str] | Sequence[str] | str | None = None,
) -> Rows | RowStream:
    """Rows from a file, a folder, a hub id, a `datasets` object, a list of dicts, or a dict of splits.

    Local files are read with our own checks: a `DataError` names file, line, column, cause and fix of every broken
    line (the first 20 in full), before a row is used. A hub id is tried only where no such path exists, and never
    with HF_HUB_OFFLINE set unless it is cached.

    Args:
        source: `.jsonl`, `.json`, `.parquet`, `.csv`, `.tsv`, `.arrow` or `.txt` (a row per line) path or a list of
            them; a folder written by `save_to_disk` or holding such files; a hub id; `Dataset`,
            `IterableDataset`, `DatasetDict`; a frame of pandas or polars, a pyarrow `Table` or `RecordBatch`;
            `list[dict]`; a dict of splits.
        split: which split to take where there are several.
        name: configuration of a hub dataset.
        columns: `"prompt=instruction+input"` makes our columns of theirs (several texts are joined by a blank line),
            `{theirs: ours}` renames, a list keeps these columns only.

    Returns:
        `Rows` (can be indexed), or `RowStream` for streams.

    Raises:
        DataError: the data are missing, unreadable or of an unknown kind.
        SetupError: a hub dataset cannot be reached.
    """
    rows = _open(source, split, name)
    if columns is None:
        return rows
    if isinstance(columns, str | dict):
        mapping = parse_columns(columns) if isinstance(columns, str) else {ours: [own] for own, ours in columns.items()}
        _need_columns(rows, [name for names in mapping.values() for name in names])
        return rows.map(map_columns(mapping))
    _need_columns(rows, list(columns))
    return rows.map(lambda row: {name: row[name] for name in columns if name in row})


def _need_columns(rows: Rows | RowStream, names: list[str]) -> None:
    """Raise `DataError` if a column that is to be renamed or kept is in none of the first rows."""
    found = dict.fromkeys(key for row in islice(rows, HEAD) for key in row)
    missing = [name for name in names if name not in found]
    if missing:
        problems = [f"'{name}': no such column.{did_you_mean(name, found)}" for name in missing]
        raise DataError.collect(f"{rows.source}: columns={names} does not fit; found {list(found)}.", problems)


def _open(source: Any, split: str, name: str | None) -> Rows | RowStream:
    if isinstance(source, Rows | RowStream):
        return source
    if isinstance(source, str | os.PathLike):
        try:
            return _open_path(str(os.fspath(source)), split, name)
        except OSError as problem:  # permissions, a name that is too long, a disk that fails
            why = "may not be read (permissions)" if isinstance(problem, PermissionError) else "cannot be read"
            raise DataError(f"'{os.fspath(source)}': {why}: {problem.strerror or problem}.") from None
    if isinstance(source, Mapping):
        return _open_splits(source, split, name)
    if isinstance(source, bytes | bytearray):
        raise DataError("Bytes cannot be read as rows. Give a path, or a list of dicts.")
    if isinstance(source, list | tuple):
        return _open_list(source, split, name)
    if hasattr(source, "features") and hasattr(source, "iter"):  # datasets.Dataset or IterableDataset
        if not hasattr(source, "__len__"):
            return arrow.stream_dataset(source)
        if len(source) == 0:
            raise DataError("The dataset holds no rows.")
        return arrow.read_dataset(source)
    if hasattr(source, "to_pylist") and hasattr(source, "schema"):  # pyarrow
        return arrow.read_table(source, "table")
    if hasattr(source, "to_dicts") and hasattr(source, "to_arrow"):  # polars
        return arrow.read_table(source.to_arrow(), "frame")
    if hasattr(source, "to_dict") and hasattr(source, "columns"):  # pandas
        return _open_list(_rows_of_frame(source), split, name)
    if hasattr(source, "__getitem__") and hasattr(source, "__len__"):
        rows = _open_list([source[i] for i in range(len(source))], split, name)
        if isinstance(rows, ListRows):
            rows.notes = (f"every row of the {type(source).__name__} was read once, and is the same in every epoch",)
        return rows
    if hasattr(source, "__iter__") and iter(source) is not source:
        return RowStream(lambda: iter(source))
    raise DataError(
        f"A {type(source).__name__} cannot be read as rows. Give a path, a hub id, a datasets.Dataset, "
        "a list of dicts, or an iterable that can be walked more than once."
    )


def _open_splits(source: Mapping[str, Any], split: str, name: str | None) -> Rows | RowStream:
    looks_like_columns = source and all(
        isinstance(value, list | tuple) and value and not isinstance(value[0], dict) for value in source.values()
    )
    if looks_like_columns:
        raise DataError(
            f"A dict of columns ({', '.join(map(str, source))}) was given. Give a list of rows "
            "([{'column': value, ...}, ...]) or datasets.Dataset.from_dict(...)."
        )
    if split not in source:
        raise DataError(f"There is no split '{split}'; found {', '.join(map(repr, source)) or 'none'}.")
    return _open(source[split], split, name)


def _open_list(source: Sequence[Any], split: str, name: str | None) -> Rows:
    if not len(source):
        raise DataError("The list of rows is empty.")
    if all(isinstance(item, str | os.PathLike) for item in source):
        parts: list[Any] = [_open(item, split, name) for item in source]
        return JoinedRows(parts)
    wrong = [f"row {i}: {trouble}" for i, row in enumerate(source) if (trouble := _not_a_row(row)) is not None]
    if wrong:
        raise DataError.collect(f"{len(wrong)} of {len(source)} rows are not dicts of columns.", wrong)
    return ListRows([{key: plain(value) for key, value in row.items()} for row in source])


def _rows_of_frame(frame: Any) -> list[Any]:
    """The rows of a pandas frame. Where lists came as arrays Arrow read it, which fills up with None."""
    records = frame.to_dict("records")
    if not any(hasattr(value, "dtype") and hasattr(value, "__len__") for row in records for value in row.values()):
        return records
    rows = [{key: deep_plain(value) for key, value in row.items()} for row in records]
    return list(map(cleaner_of_rows(rows), rows))


def _not_a_row(row: Any) -> str | None:
    """Why a value is no row, None if it is one."""
    if not isinstance(row, dict):
        return f"a {type(row).__name__}, not a dict of columns"
    names = [name for name in row if not isinstance(name, str)]
    return f"the column name {names[0]!r} is no string" if names else None


def _open_path(text: str, split: str, name: str | None) -> Rows:
    if not text.strip():
        raise DataError("The path of the rows is empty. Give a file, a folder or a hub id.")
    path = _expanded(text)
    if path.is_dir():
        return _open_folder(path, split)
    if path.exists():
        return _open_file(path, split)
    looks_local = path.suffix.lower() in READERS or text.startswith((".", "/", "~"))
    if looks_local or not HUB_ID.fullmatch(text):
        raise DataError(f"'{text}': no such file.{_nearby(path)}")
    return _open_hub(text, split, name)


def _expanded(text: str) -> Path:
    """The path, with `~` replaced; raises `DataError` for what can be no path."""
    if re.match(r"[a-z][a-z0-9+]*://", text):
        raise DataError(f"'{text}': an address, not a file. Download it first, and give the path of the file.")
    if "\0" in text:
        raise DataError(f"{text!r}: a path holds no zero byte.")
    try:
        return Path(text).expanduser()
    except RuntimeError:  # no such user
        return Path(text)


def _nearby(path: Path) -> str:
    if path.is_symlink():
        return f" It is a link to '{os.readlink(path)}', which does not exist."
    folder = path.parent
    if not folder.is_dir():
        return f" The folder '{folder}' does not exist either."
    near = difflib.get_close_matches(path.name, [item.name for item in folder.iterdir()], n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(repr(str(folder / item)) for item in near)}?" if near else ""


def _open_file(path: Path, split: str) -> Rows:
    suffix = path.suffix.lower()
    if not path.is_file():
        raise DataError(f"'{path}': neither a file nor a folder (a pipe or a device). Write the rows to a file first.")
    if suffix in READERS:
        refuse_disguised(path)
    if suffix in (".jsonl", ".ndjson", ".txt"):
        return textfiles.LineRows(path, as_json=suffix != ".txt")
    if suffix == ".parquet":
        return arrow.read_parquet(path)
    if suffix == ".json":
        return textfiles.read_json(path, split)
    if suffix in (".csv", ".tsv"):
        return textfiles.read_table(path, "," if suffix == ".csv" else "\t")
    if suffix == ".arrow":
        return arrow.read_arrow(path)
    packed = {".gz": "gunzip", ".bz2": "bunzip2", ".zip": "unzip", ".zst": "zstd -d", ".xz": "unxz"}.get(suffix)
    hint = f" Unpack it first ({packed})." if packed else ""
    what = f"files of kind '{suffix}'" if suffix else "files without an ending"
    raise DataError(f"'{path}': {what} cannot be read; use one of {', '.join(READERS)}.{hint}")


def _open_folder(path: Path, split: str) -> Rows:
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return _open_saved(path, split)
    files = sorted(file for base in (path, path / "data") for file in base.glob("*") if file.suffix.lower() in READERS)
    chosen = [file for file in files if re.match(rf"{re.escape(split)}(?![A-Za-z0-9])", file.name)]
    if not chosen and len(files) == 1 and split == "train":
        chosen = files
    if not chosen:
        found = ", ".join(file.name for file in files[:10]) or "no data files"
        raise DataError(
            f"'{path}': no file for the split '{split}' (like {split}.jsonl or {split}-00000.parquet); found {found}."
        )
    return _open_list(chosen, split, None) if len(chosen) > 1 else _open_file(chosen[0], split)


def _open_saved(path: Path, split: str) -> Rows:
    import datasets

    try:
        for file in path.rglob("*.arrow"):
            arrow.refuse_packed(file)
        saved = datasets.load_from_disk(str(path))
    except DataError:
        raise
    except Exception as problem:  # a damaged folder fails in many ways inside pyarrow, json and datasets
        raise DataError(f"'{path}': the saved dataset is damaged ({first_line(problem)}). Save it again.") from None
    if isinstance(saved, dict):
        if split not in saved:
            raise DataError(f"'{path}': no split '{split}'; found {', '.join(map(repr, saved))}.")
        saved = saved[split]
    if len(saved) == 0:
        raise DataError(f"'{path}': the saved dataset holds no rows.")
    return arrow.read_dataset(saved, path.name)


def _open_hub(text: str, split: str, name: str | None) -> Rows:
    import datasets

    try:
        found = datasets.load_dataset(text, name, split=split)
    except Exception as problem:  # network, cache, builder and data errors of several libraries
        wrong_split = isinstance(problem, ValueError) and "split" in str(problem)
        if wrong_split or type(problem).__name__ == "DatasetGenerationError":
            raise DataError(f"Dataset '{text}': {first_line(problem)}") from None
        raise SetupError(_hub_message(text, problem)) from None
    return arrow.read_dataset(found, text)


def _hub_message(text: str, problem: Exception) -> str:
    offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
    why = (
        "HF_HUB_OFFLINE is set, so only datasets in the local cache can be opened; unset it to download."
        if offline
        else "Check the name, the network, and `hf auth login` for private datasets."
    )
    return (
        f"Dataset '{text}': no such path here, and the Hugging Face hub gave nothing "
        f"({type(problem).__name__}: {first_line(problem)}). {why}"
    )
