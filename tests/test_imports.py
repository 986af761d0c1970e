"""The shape of the source tree: who may import whom, what stays light, how long a file may be."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "strop"

BASE = {"errors", "records", "collectives"}
WAIST = BASE | {"data", "model"}
TOOLS = WAIST | {"rollout", "rewards", "losses"}
ENGINE = TOOLS | {"settings", "watch", "engine", "online", "methods"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "records": {"errors"},
    "collectives": {"errors", "records"},
    "data": BASE,
    "model": BASE | {"data"},
    "rollout": WAIST,
    "rewards": WAIST,
    "losses": BASE,
    "settings": TOOLS,
    "watch": TOOLS | {"settings"},
    "engine": TOOLS | {"settings", "watch"},
    "online": TOOLS | {"settings", "watch", "engine"},
    "methods": TOOLS | {"settings", "watch", "engine", "online"},
    "plan": ENGINE,
    "report": ENGINE,
    "export": ENGINE,
    "demo": ENGINE | {"plan", "report", "export"},
    "cli": ENGINE | {"plan", "report", "export", "demo"},
    "testing": ENGINE | {"plan", "report", "export", "demo", "cli"},
    "__main__": {"cli"},
    "__init__": {"methods", "errors"},
}
"""Room -> rooms it may import from. The package's own `__init__` reads the registry of methods and nothing else."""

NAMELESS = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "managers"}
MAX_LINES = 450
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX)\b|raise NotImplementedError|pragma: no cover")

FILES = sorted(SOURCE.rglob("*.py"))


def room_of(path: Path) -> str:
    """First folder below the package, or the module's name: `data` for data/load.py, `errors` for errors.py."""
    first = path.relative_to(SOURCE).parts[0]
    return first.removesuffix(".py")


def imported_modules(path: Path) -> Iterator[str]:
    """Absolute names of every strop module that a file imports, at any depth (inside functions too)."""
    package = ("strop", *path.relative_to(SOURCE).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(package[: len(package) - node.level + 1]) + "." if node.level else ""
            module = (start + (node.module or "")).strip(".")
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "strop" else [module]
        else:
            continue
        yield from (name for name in names if name == "strop" or name.startswith("strop."))


def imported_rooms(path: Path) -> set[str]:
    """Rooms of the package that a file imports from; `from strop import X` counts as `methods`, where X lives."""
    rooms = set()
    for name in imported_modules(path):
        room = name.split(".")[1] if "." in name else "methods"
        rooms.add(room if room in MAY_IMPORT else "methods")
    return rooms


def test_every_room_is_known() -> None:
    rooms = {room_of(path) for path in FILES}
    assert rooms <= set(MAY_IMPORT), f"new rooms need a place in the import order: {rooms - set(MAY_IMPORT)}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_import_direction(path: Path) -> None:
    room = room_of(path)
    wrong = imported_rooms(path) - MAY_IMPORT[room] - {room}
    assert not wrong, f"{path.relative_to(ROOT)} is in '{room}' and may not import from {sorted(wrong)}"


def test_imported_rooms_sees_every_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "SOURCE", tmp_path)
    (tmp_path / "data").mkdir()
    file = tmp_path / "data" / "probe.py"
    file.write_text(
        "import os\nimport strop.model.load\nfrom strop.losses import dpo_loss\nfrom ..rewards import judge\n"
        "from . import rows\ndef f():\n    from strop import report, DPOTrainer\n"
    )
    assert imported_rooms(file) == {"model", "losses", "rewards", "data", "report", "methods"}


@pytest.mark.parametrize("module", ["strop", "strop.data", "strop.errors", "strop.records", "strop.report.glossary"])
def test_light_modules_do_not_import_torch(module: str) -> None:
    code = f"import sys, {module}; print(*(m for m in ('torch', 'transformers') if m in sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=SOURCE.parent, check=False)
    assert run.returncode == 0, run.stderr
    assert "torch" not in run.stdout.split(), f"import {module} loads torch"


def test_import_strop_loads_no_framework() -> None:
    code = "import sys, strop; print(*sorted(m for m in sys.modules if m.split('.')[0] in %r))"
    heavy = {"torch", "transformers", "datasets", "numpy", "accelerate", "peft"}
    run = subprocess.run(
        [sys.executable, "-c", code % heavy], capture_output=True, text=True, cwd=SOURCE.parent, check=True
    )
    assert run.stdout.split() == [], f"import strop loads {run.stdout.split()[:5]}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_files_are_small_finished_and_named(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_LINES, f"{path.name} has {len(text.splitlines())} lines; split it by idea"
    parts = {part.removesuffix(".py") for part in path.relative_to(SOURCE).parts}
    assert not parts & NAMELESS, f"{path.relative_to(ROOT)}: find the name of the idea"
    unfinished = [f"line {i}: {line.strip()}" for i, line in enumerate(text.splitlines(), 1) if UNFINISHED.search(line)]
    assert not unfinished, f"{path.relative_to(ROOT)} has unfinished marks: {unfinished}"
