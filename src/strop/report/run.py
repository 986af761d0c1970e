"""Reads a run directory into memory. Every file is optional, and a last line cut off by a crash is left out."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from strop.errors import SetupError
from strop.metric import FAMILIES, OTHER, Entry
from strop.report.glossary import lookup
from strop.report.metrics import MOST_NAMES, Metrics
from strop.report.plain import clean, is_number, mapping, plain, sequence
from strop.report.samples import held

FILES = ("metrics.jsonl", "samples.jsonl", "config.yaml", "data.json", "run.json")
"""Files by which a folder is known to be a run."""
MOST_BYTES = 4 << 30
MOST_ALARMS = 10_000
LONGEST_LINE = 1 << 26
"""Bytes of a line; one that is longer is of no run, and is left out piece by piece."""


@dataclass
class Run:
    """One training run as it lies on disk."""

    name: str
    folder: Path
    metrics: Metrics = field(default_factory=Metrics)  # the numbers of all log lines
    samples: list[dict[str, Any]] = field(default_factory=list)  # one entry per completion, with "step"
    config: dict[str, Any] = field(default_factory=dict)
    data: dict[str, dict[str, Any]] = field(default_factory=dict)  # set name -> what the data checks found
    facts: dict[str, Any] = field(default_factory=dict)  # versions, layout, start
    entries: list[Entry] = field(default_factory=list)  # what the method's class says of its own metrics
    alarms: list[dict[str, Any]] = field(default_factory=list)  # one entry per alarm, with "step", "alarm", "text"
    unread: list[str] = field(default_factory=list)  # what could not be read, and why

    def explained(self, key: str) -> Entry | None:
        """What a metric means, by the run's own entries or the glossary."""
        return lookup(key, self.entries)


def read_run(folder: Path, name: str | None = None) -> Run:
    """The run in `folder`."""
    run = Run(clean(name or folder.name), folder)
    run.metrics = Metrics(row for _, row in _lines(folder / "metrics.jsonl", run.unread))
    if run.metrics.full:
        run.unread.append(f"metrics.jsonl has more than {MOST_NAMES:,} names; the first ones are shown.")
    run.samples, more = held((size, plain(row)) for size, row in _lines(folder / "samples.jsonl", run.unread))
    run.unread += [more] if more else []
    alarms = islice(_lines(folder / "alarms.jsonl", run.unread), MOST_ALARMS)
    run.alarms = [plain(row) for _, row in alarms]
    run.config = _document(folder / "config.yaml", run.unread)
    run.data = {k: v for k, v in _document(folder / "data.json", run.unread).items() if isinstance(v, dict)}
    run.facts = _document(folder / "run.json", run.unread)
    run.entries = [entry for note in sequence(run.facts.get("metrics")) if (entry := _entry(mapping(note)))]
    return run


def find_runs(folder: Path) -> list[Run]:
    """The run in `folder` itself and those in its direct subfolders, oldest first.

    Raises `SetupError` if there is none.
    """
    if not folder.is_dir():
        raise SetupError(f"{folder} is not a folder. Give the output_dir of a run.")
    places = [folder, *(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("checkpoint-"))]
    places = [place for place in places if any((place / name).is_file() for name in FILES)]
    if not places and not (folder / "summary.json").is_file():
        wanted = ", ".join(FILES)
        raise SetupError(
            f"{clean(str(folder))} holds no run: none of {wanted} is there or one folder below. "
            "Give a run's output_dir."
        )
    runs = [read_run(place, folder.resolve().name if place == folder else place.name) for place in places]
    return sorted(runs, key=lambda run: (run.folder != folder, _began(run), changed(run.folder), run.name))


def _began(run: Run) -> float:
    """When a run began, in seconds; 0 where nobody knows. What has no offset is the time of this machine."""
    try:
        return datetime.fromisoformat(str(run.facts.get("started"))).timestamp()
    except (ValueError, OverflowError, OSError):
        return 0.0


def read_summary(folder: Path) -> dict[str, Any]:
    """summary.json of a demonstration or benchmark, empty if there is none."""
    return _document(folder / "summary.json", [])


def _lines(path: Path, unread: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file with one in each line, with their bytes; one whose step is no number is left out."""
    broken = first = number = 0
    for number, line in enumerate(_pieces(path, unread), 1):
        try:
            row = json.loads(line.decode("utf-8", "replace")) if line.strip() else {}
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict) or not is_number(row.get("step", 0)):
            broken, first = broken + 1, first or number
        elif row:
            yield len(line), row
    if broken:
        said = f"{broken} of {number} lines are not JSON objects of a step (first: line {first})"
        unread.append(f"{path.name}: {said}; left out.")


def _document(path: Path, unread: list[str]) -> dict[str, Any]:
    """The names with values that a file holds; empty where it holds none."""
    text = b"".join(_pieces(path, unread)).decode("utf-8", "replace")
    try:
        content = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text or "{}")
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        said = clean(str(error)).splitlines() or [type(error).__name__]
        unread.append(f"{path.name} cannot be read: {said[0]}")
        return {}
    if content is not None and not isinstance(content, dict):
        unread.append(f"{path.name} holds a {type(content).__name__} and not names with values; left out.")
    return mapping(plain(content))


def _pieces(path: Path, unread: list[str]) -> Iterator[bytes]:
    """The lines of a file, however long they are; none where it is not there, or too much to be one of ours."""
    try:
        size = path.stat().st_size if path.is_file() else 0
        if size > MOST_BYTES:
            unread.append(f"{path.name} has {size:,} bytes; the most that is read is {MOST_BYTES:,}. Left out.")
        elif size:
            with path.open("rb") as file:
                yield from iter(lambda: file.readline(LONGEST_LINE), b"")
    except OSError as error:
        unread.append(f"{path.name} cannot be read: {error.strerror}.")


def _entry(note: dict[str, Any]) -> Entry | None:
    """An entry as the run directory wrote it; None where it is none."""
    names = {f.name for f in dataclasses.fields(Entry)} - {"low", "high"}
    texts = {name: str(value) for name, value in note.items() if name in names}
    if not {"key", "family", "meaning", "unit", "per"} <= texts.keys():
        return None
    texts["family"] = texts["family"] if texts["family"] in FAMILIES else OTHER
    return Entry(**texts, **{n: float(v) for n in ("low", "high") if is_number(v := note.get(n))})  # type: ignore[arg-type]


def changed(folder: Path) -> int:
    """When a file of the run was last written, in nanoseconds of the system's clock."""
    return max((path.stat().st_mtime_ns for name in FILES if (path := folder / name).is_file()), default=0)
