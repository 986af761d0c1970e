"""What a run leaves on disk beside its checkpoints: config.yaml, data.json, metrics.jsonl, samples.jsonl, versions."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import logging
import math
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from transformers import TrainerCallback

from strop.data import DataReport
from strop.disk import refusals_named, write_text, written_beside
from strop.errors import SetupError
from strop.metric import Entry
from strop.plain_text import bounded, first_line, masked
from strop.settings.config import TrainerConfig

PACKAGES = ("strop", "torch", "transformers", "accelerate", "datasets", "peft", "tokenizers", "bitsandbytes", "vllm")
LONGEST_REASON = 500
"""Characters of what is kept of an error."""
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # in C where it was built: in Python, a tiny run's tenth

logger = logging.getLogger(__name__)


@functools.cache  # reading what pip left beside nine packages takes as long as a small run's first step
def versions() -> dict[str, str]:
    """Versions of Python and of the packages a run depends on, where installed."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def append_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append rows as JSON lines, all of them or none; non-finite numbers become null, as JSON has none.

    A disk that refuses them costs these lines and not the run, and is named.
    """
    text = "".join(json.dumps(_plain(row), ensure_ascii=False) + "\n" for row in rows)
    size = path.stat().st_size if path.is_file() else 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(text.encode("utf-8", "backslashreplace"))  # a lone surrogate becomes JSON's escape for it
    except OSError as error:
        logger.warning("%s cannot be written (%s): lines are missing there", path, error.strerror)
        with contextlib.suppress(OSError):
            os.truncate(path, size)


def drop_after(path: Path, step: int) -> None:
    """Remove the lines written after so many steps, which a resumed run will write again, and one that was cut off.

    A line is what ends with a line feed, whatever else is in it; one that is damaged stays.
    """
    if not path.is_file():
        return
    with path.open("rb") as file, refusals_named(path), written_beside(path) as kept:
        kept.writelines(line for line in file if line.endswith(b"\n") and not _written_in(line) > step)


def _written_in(line: bytes) -> float:
    """The step that a line was written in or after. A completion to learn from bears the steps that were made before,
    as it is written within the next; one of an evaluation those that were made, too, and that is after them."""
    try:
        row = json.loads(line)
        step, within = row["step"], "completion" in row and not row.get("evaluation")
    except (ValueError, LookupError, TypeError, RecursionError):
        return 0
    return step + within if isinstance(step, (int, float)) else 0


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if hasattr(value, "tolist"):  # numbers and arrays of numpy and torch
        return _plain(value.tolist())
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def _at(step: int, row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with the run's step, whatever the row calls so."""
    return {"step": step, **{name: value for name, value in row.items() if name != "step"}}


class RunDirectory(TrainerCallback):
    """Writes a run's files from the first process; `facts` are asked for when training begins."""

    def __init__(
        self,
        args: TrainerConfig,
        reports: Mapping[str, DataReport],
        facts: Callable[[], Mapping[str, Any]],
        glossary: Sequence[Entry] = (),
    ) -> None:
        self.args, self.reports, self.facts, self.glossary = args, reports, facts, glossary
        self.command: dict[str, Any] = {}  # model, data and adapter, where a command line named them

    @property
    def folder(self) -> Path:
        return Path(str(self.args.output_dir))

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        known = self.facts()  # on every rank: a model that is spread over them is run by all together
        if not state.is_world_process_zero:
            return
        for leftover in self.folder.glob(".*.tmp"):  # of a run that was killed
            leftover.unlink()
        for name in ("metrics.jsonl", "samples.jsonl", "alarms.jsonl"):
            drop_after(self.folder / name, state.global_step if state.global_step else -1)
        settings = masked({"method": args.method, **_plain(self.command), **_plain(args.resolved())})
        text = yaml.dump(settings, Dumper=_DUMPER, sort_keys=False, allow_unicode=True)
        write_text(self.folder / "config.yaml", text)
        reports = {name: report.to_dict() for name, report in self.reports.items()}
        write_text(self.folder / "data.json", json.dumps(masked(_plain(reports)), ensure_ascii=False, indent=1))
        facts = {
            "versions": versions(),
            **known,
            "steps": state.max_steps,
            "started": datetime.now(UTC).isoformat(" ", "seconds"),
            "headline": list(args.headline),
            "metrics": [dataclasses.asdict(entry) for entry in self.glossary],
        }
        write_text(self.folder / "run.json", json.dumps(masked(facts), indent=1))

    def note_failure(self, step: int, error: BaseException) -> None:
        """Leave in run.json why the run ended before its end; a run that is gone on with writes it anew."""
        path = self.folder / "run.json"
        if self.args.process_index or not path.is_file():
            return
        with contextlib.suppress(OSError, ValueError, SetupError):  # the error itself is what a person must see
            said = bounded(f"{type(error).__name__}: {first_line(error)}", LONGEST_REASON)
            facts = json.loads(path.read_text(encoding="utf-8")) | {"failed": said, "failed_at": step}
            write_text(path, json.dumps(masked(facts), indent=1))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and logs:
            append_jsonl(self.folder / "metrics.jsonl", [_at(state.global_step, logs)])

    def write_samples(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append completions (prompt, completion, rewards, ...) with the step they are of."""
        if self.args.process_index == 0:
            append_jsonl(self.folder / "samples.jsonl", [_at(step, row) for row in rows])
