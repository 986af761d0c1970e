"""Every package that strop imports is declared: in the dependencies, or in an extra where a function imports it."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "strop"
NAMES = {"sklearn": "scikit-learn", "yaml": "pyyaml"}
"""Import name -> distribution, where they differ by more than a dash."""
BROUGHT = {
    "latex2sympy2_extended": "math-verify, whose parser it is",
    "pandas": "datasets",
    "wandb": "who names it in report_to",
    "comet_ml": "who names it in report_to",
    "IPython": "the notebook that strop is running in",
    "triton": "torch for CUDA on Linux; kernels are not used where it is not",
}
"""Import name -> who brings the package; imported where its absence is met."""


def imports(tree: ast.Module) -> Iterator[tuple[str, bool]]:
    """(top-level name of a third-party package, whether the module cannot be imported without it)."""
    guarded = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.If | ast.Try)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names = [node.module]
        else:
            continue
        for name in (name.split(".")[0] for name in names):
            if name not in sys.stdlib_module_names and name != "strop":
                yield name, node not in guarded


def declared() -> tuple[list[str], set[str]]:
    """Distributions that everybody gets, and those of the extras; `dev` does not count."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    core = [re.split(r"[<>=!~\[ ;]", line)[0].lower() for line in project["dependencies"]]
    more = {re.split(r"[<>=!~\[ ;]", line)[0].lower() for name in extras if name != "dev" for line in extras[name]}
    return core, more


def test_every_imported_package_is_declared() -> None:
    core, extras = declared()
    wrong: dict[str, set[str]] = defaultdict(set)
    for path in sorted(SOURCE.rglob("*.py")):
        for name, needed in imports(ast.parse(path.read_text(encoding="utf-8"))):
            package = NAMES.get(name, name.replace("_", "-")).lower()
            known = {package, name.lower()} & (set(core) if needed else {*core, *extras})
            if not known and (needed or name not in BROUGHT):
                wrong[name].add(str(path.relative_to(SOURCE)))
    assert not wrong, f"declare in pyproject.toml: {dict(wrong)}"


def test_nothing_is_declared_twice() -> None:
    core, _ = declared()
    assert len(core) == len(set(core)), sorted(name for name in set(core) if core.count(name) > 1)


def test_where_an_import_stands_is_seen() -> None:
    text = "import a.b\nfrom c import d\ntry:\n    import e\nexcept ImportError:\n    pass\ndef f():\n    import g\n"
    tree = ast.parse(text)
    assert set(imports(tree)) == {("a", True), ("c", True), ("e", False), ("g", False)}
