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

BASE = {
    "plain_text",
    "terminal",
    "errors",
    "lazy",
    "disk",
    "records",
    "collectives",
    "device",
    "time_limit",
    "event_loop",
    "http_client",
    "metric",
    "fresh_process",
    "ray_cluster",
}
WAIST = BASE | {"data", "model"}
TOOLS = WAIST | {"rollout", "rewards", "losses", "agents"}
ENGINE = TOOLS | {"settings", "watch", "engine", "online", "methods"}
MAY_IMPORT: dict[str, set[str]] = {
    "plain_text": set(),
    "terminal": set(),
    "errors": {"plain_text"},
    "records": {"errors"},
    "collectives": {"errors", "records"},
    "device": set(),
    "time_limit": set(),
    "event_loop": {"time_limit"},
    "http_client": {"errors", "event_loop", "plain_text"},
    "metric": set(),
    "fresh_process": set(),
    "ray_cluster": {"errors", "plain_text"},
    "recipes": {"errors"},
    "disk": {"errors"},
    "lazy": {"errors"},
    "data": BASE,
    "model": BASE | {"data"},
    "rollout": WAIST,
    "rewards": WAIST,
    "agents": WAIST | {"rollout", "rewards"},
    "losses": BASE,
    "settings": TOOLS | {"recipes"},
    "watch": TOOLS | {"settings"},
    "engine": TOOLS | {"settings", "watch"},
    "online": TOOLS | {"settings", "watch", "engine"},
    "methods": TOOLS | {"settings", "watch", "engine", "online"},
    "plan": ENGINE,
    "report": ENGINE,
    "export": ENGINE,
    "demo": ENGINE | {"plan", "report", "export"},
    "scripts": ENGINE | {"plan", "report", "export"},
    "cli": ENGINE | {"plan", "report", "export", "demo", "scripts"},
    "testing": ENGINE | {"plan", "report", "export", "demo", "cli", "scripts"},
    "__main__": {"cli"},
    "__init__": {"methods", "errors", "scripts"},
}
"""Room -> rooms it may import from. The package's own `__init__` reads two tables of names, and nothing else."""

NAMELESS = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "managers"}
MAX_LINES = 450
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX)\b|raise NotImplementedError|pragma: no cover")

FILES = sorted(SOURCE.rglob("*.py"))


def room_of(path: Path) -> str:
    """First folder below the package, or the module's name: `data` for data/load.py, `errors` for errors.py."""
    first = path.relative_to(SOURCE).parts[0]
    return first.removesuffix(".py")


def type_checking_nodes(tree: ast.AST) -> set[ast.AST]:
    """All that stands under `if TYPE_CHECKING:` and never runs."""
    guards = [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test).endswith("TYPE_CHECKING")]
    return {inner for guard in guards for statement in guard.body for inner in ast.walk(statement)}


def import_statements(path: Path, root: Path, *, only_run: bool = False) -> Iterator[tuple[str, list[str]]]:
    """(absolute module, names taken from it) of every import of a file below `root`, at any depth (functions too).

    `import a.b` takes no names. `only_run`: without what only a type checker reads.
    """
    package = path.relative_to(root).parent.parts
    tree = ast.parse(path.read_text(encoding="utf-8"))
    unread = type_checking_nodes(tree) if only_run else set()
    for node in ast.walk(tree):
        if node in unread:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(package[: len(package) - node.level + 1]) + "." if node.level else ""
            yield (start + (node.module or "")).strip("."), [alias.name for alias in node.names]


def imported_modules(path: Path) -> Iterator[str]:
    """Absolute names of every strop module that a file imports."""
    for module, names in import_statements(path, SOURCE.parent):
        found = [f"{module}.{name}" for name in names] if module == SOURCE.name and names else [module]
        yield from (name for name in found if name.split(".")[0] == SOURCE.name)


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
    monkeypatch.setattr(sys.modules[__name__], "SOURCE", tmp_path / "strop")
    (tmp_path / "strop" / "data").mkdir(parents=True)
    file = tmp_path / "strop" / "data" / "probe.py"
    file.write_text(
        "import os\nimport strop.model.load\nfrom strop.losses import dpo_loss\nfrom ..rewards import judge\n"
        "from . import rows\ndef f():\n    from strop import report, DPOTrainer\n"
    )
    assert imported_rooms(file) == {"model", "losses", "rewards", "data", "report", "methods"}


def import_graph(root: Path, *packages: str) -> dict[str, set[str]]:
    """Module -> modules of the packages below `root` that it imports when it, or a function of it, runs.

    A submodule that is taken from its own package is an import of the submodule alone.
    """
    files = {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
        for package in packages
        for path in (root / package).rglob("*.py")
    }
    graph: dict[str, set[str]] = {}
    for module, path in files.items():
        found: set[str] = set()
        for target, names in import_statements(path, root, only_run=True):
            inner = {f"{target}.{name}" for name in names} & set(files)
            found |= inner if len(inner) == len(names) and names else inner | {target}
        graph[module] = (found & set(files)) - {module}
    return graph


def circles(graph: dict[str, set[str]]) -> set[frozenset[str]]:
    """Groups of modules that import one another, however long the way round."""
    reached: dict[str, set[str]] = {}
    for module in graph:
        seen, rest = set[str](), [module]
        while rest:
            for target in graph[rest.pop()] - seen:
                seen.add(target)
                rest.append(target)
        reached[module] = seen
    groups = (frozenset({n for n in reached[m] if m in reached[n]}) for m in graph if m in reached[m])
    return set(groups)


def test_no_modules_import_one_another() -> None:
    found = circles(import_graph(SOURCE.parent, "strop")) | circles(import_graph(ROOT, "proof", "benchmarks", "tests"))
    named = [sorted(group) for group in found]
    assert not named, f"put what both sides need into a module below them: {named}"


def test_circles_are_seen_in_every_form(tmp_path: Path) -> None:
    texts = {
        "__init__": "from p.a import x",
        "a": "def f():\n    from p.b import y",
        "b": "import p.c",
        "c": "from . import a",
        "d": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p.e import z\nelse:\n    import os",
        "e": "from p import d",
        "f": "from p import x",
    }
    (tmp_path / "p").mkdir()
    for name, text in texts.items():
        (tmp_path / "p" / f"{name}.py").write_text(text)
    graph = import_graph(tmp_path, "p")
    assert graph["p.f"] == {"p"} and graph["p.e"] == {"p.d"} and graph["p.d"] == set()
    assert circles(graph) == {frozenset({"p.a", "p.b", "p.c"})}
    (tmp_path / "p" / "a.py").write_text("from p.f import x")
    assert circles(import_graph(tmp_path, "p")) == {frozenset({"p", "p.a", "p.f"})}


@pytest.mark.parametrize(
    "module", ["strop", "strop.data", "strop.errors", "strop.records", "strop.report.glossary", "strop.agents.slots"]
)
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
