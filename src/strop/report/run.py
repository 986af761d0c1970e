"""Reads a run directory into memory. Every file is optional, and a last line cut off by a crash is left out."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from strop.errors import SetupError
from strop.metric import FAMILIES, OTHER, Entry
from strop.report.glossary import lookup
from strop.report.metrics import MOST_NAMES, Metrics, Series
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

    @property
    def method(self) -> str:
        """The method's name in lower case, or the empty string."""
        return str(self.config.get("method", ""))

    def explained(self, key: str) -> Entry | None:
        """What a metric means, by the run's own entries or the glossary."""
        return lookup(key, self.entries)

    def series(self) -> dict[str, Series]:
        """Metric key -> (step, value) points in order of steps; a value that is no finite number is left out."""
        return self.metrics.curves

    def totals(self) -> dict[str, float]:
        """Numbers about the whole training (`train_runtime`, `train_loss`, ...)."""
        return dict(sorted(self.metrics.totals.items()))

    @property
    def ended(self) -> bool:
        """Whether the training came to its end: nothing was learned after the line about the whole of it."""
        return self.metrics.ended

    @property
    def last_step(self) -> int:
        return self.metrics.last_step


def read_run(folder: Path, name: str | None = None) -> Run:
    """The run in `folder`."""
    run = Run(clean(name or folder.name), folder)
    run.metrics = Metrics(_lines(folder / "metrics.jsonl", run.unread))
    if run.metrics.full:
        run.unread.append(f"metrics.jsonl has more than {MOST_NAMES:,} names; the first ones are shown.")
    sampled = _sized_lines(folder / "samples.jsonl", run.unread)
    run.samples, more = held((size, plain(row)) for size, row in sampled)
    run.unread += [more] if more else []
    alarms = islice(_lines(folder / "alarms.jsonl", run.unread), MOST_ALARMS)
    run.alarms = [plain(row) for row in alarms]
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
    began = lambda run: (str(run.facts.get("started", "")), changed(run.folder), run.name)  # noqa: E731
    return sorted(runs, key=lambda run: (run.folder != folder, began(run)))


def read_summary(folder: Path) -> dict[str, Any]:
    """summary.json of a demonstration or benchmark, empty if there is none."""
    return _document(folder / "summary.json", [])


def _lines(path: Path, unread: list[str]) -> Iterator[dict[str, Any]]:
    """The objects of a file with one in each line."""
    return (row for _, row in _sized_lines(path, unread))


def _sized_lines(path: Path, unread: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The same with the bytes of each; a step that is no number makes its line unreadable."""
    broken = first = number = 0
    try:
        for number, line in enumerate(_pieces(path) if _readable(path, unread) else (), 1):
            try:
                row = json.loads(line.decode("utf-8", "replace")) if line.strip() else {}
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict) or not is_number(row.get("step", 0)):
                broken, first = broken + 1, first or number
            elif row:
                yield len(line), row
    except OSError as error:
        unread.append(f"{path.name} cannot be read: {error.strerror}.")
    if broken:
        said = f"{broken} of {number} lines are not JSON objects of a step (first: line {first})"
        unread.append(f"{path.name}: {said}; left out.")


def _pieces(path: Path) -> Iterator[bytes]:
    """The lines of a file, however long they are."""
    with path.open("rb") as file:
        yield from iter(lambda: file.readline(LONGEST_LINE), b"")


def _document(path: Path, unread: list[str]) -> dict[str, Any]:
    text = _text(path, unread)
    try:
        content = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text or "{}")
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        said = clean(str(error)).splitlines() or [type(error).__name__]
        unread.append(f"{path.name} cannot be read: {said[0]}")
        return {}
    if content is not None and not isinstance(content, dict):
        unread.append(f"{path.name} holds a {type(content).__name__} and not names with values; left out.")
    return mapping(plain(content))


def _readable(path: Path, unread: list[str]) -> bool:
    """Whether a file is there, and not too much to be one of ours."""
    if not path.is_file():
        return False
    if (size := path.stat().st_size) > MOST_BYTES:
        unread.append(f"{path.name} has {size:,} bytes; the most that is read is {MOST_BYTES:,}. Left out.")
    return size <= MOST_BYTES


def _text(path: Path, unread: list[str]) -> str:
    """What a file holds; nothing where there is none, or it cannot be read."""
    try:
        return path.read_bytes().decode("utf-8", "replace") if _readable(path, unread) else ""
    except OSError as error:
        unread.append(f"{path.name} cannot be read: {error.strerror}.")
        return ""


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
