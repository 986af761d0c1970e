"""pytest plugin for TRL's own unit tests: `trl` is strop, its hub is a folder, every outcome becomes a line of JSON.

Read by `python -m benchmarks.trl_tests`, which sets STROP_STAND_INS (see `trl_stand_ins`) and STROP_OUTCOMES.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest

from strop.scripts import alias

STAND_INS = Path(os.environ["STROP_STAND_INS"])
OUTCOMES = Path(os.environ["STROP_OUTCOMES"])
SECONDS = 120
"""Most seconds of one test."""


class NoNamesake(Exception):
    """A test used a name that strop does not have."""


class Absent(type):
    """Classes that stand for names which strop does not have: a module can import them, a test that uses one fails."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise NoNamesake(f"{cls.__name__}.{name}")


def stand_in(name: str) -> Any:
    """A class that can be imported and inherited from, and not be used."""

    def fail(self: Any, *args: Any, **kwargs: Any) -> None:
        raise NoNamesake(name)

    return Absent(name, (), {"__init__": fail, "__post_init__": lambda self: None})


def look_up(name: str, find: Any = alias.look_up) -> Any:
    """strop's own, or something that can be imported."""
    try:
        return find(name)
    except ImportError:
        return stand_in(name)


def load_dataset(path: str, name: str | None = None, *args: Any, **options: Any) -> Any:
    """`datasets.load_dataset`, with the organisation's data from the folder."""
    folder = STAND_INS / "data" / str(path).rpartition("/")[2] / (name or "default")
    if folder.is_dir():
        return find_dataset(str(folder), *args, **options)
    return find_dataset(path, name, *args, **options)


find_dataset = datasets.load_dataset
datasets.load_dataset = datasets.load.load_dataset = load_dataset
alias.look_up = look_up
alias.serve_trl()


@pytest.fixture
def lazy_shared_datadir(request: pytest.FixtureRequest) -> Path:
    """The folder `data` beside a test file, which pytest-datadir would copy."""
    return request.path.parent / "data"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """A test that hangs fails."""

    def late(number: int, frame: Any) -> None:
        raise TimeoutError(f"more than {SECONDS} s")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """One line for each test that ran, failed to begin or was skipped."""
    if report.when != "call" and report.passed:
        return
    line = {"test": report.nodeid, "outcome": report.outcome, "seconds": round(report.duration, 2)}
    if report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        line |= {"error": getattr(crash, "message", "") or str(report.longrepr), "trace": report.longreprtext[-1500:]}
    elif report.skipped:
        line["error"] = str(report.longrepr[-1])
    with OUTCOMES.open("a") as file:
        file.write(json.dumps(line) + "\n")
