"""Private names of other packages that strop uses: all of them are in one list, with where and why.

A private name may be gone with the next release of its package. So each use is a decision, and this is where it is
written down. What is scanned: attributes, imported names, names in `getattr` and `hasattr`, and methods that stand in
for a private one of a parent class, wherever they begin with one underscore and strop does not define them itself.
"""

from __future__ import annotations

import ast
import functools
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import strop
from strop.methods.registry import METHODS

SOURCE = Path(strop.__file__).parent
LIST = Path(__file__).with_name("private_names.txt")


def is_private(name: str) -> bool:
    """Whether it is a private name, and not one of strop's own that it puts on foreign objects."""
    return name.startswith("_") and not name.startswith(("__", "_strop_")) and name.strip("_") != ""


def trees() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(SOURCE.rglob("*.py")):
        if "testing" not in path.relative_to(SOURCE).parts:
            yield str(path.relative_to(SOURCE)), ast.parse(path.read_text(encoding="utf-8"))


def defined(tree: ast.Module) -> set[str]:
    """Private names that a module makes: functions, classes, variables, parameters, attributes it assigns."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            owner = node.value
            if isinstance(owner, ast.Name) and owner.id in ("self", "cls", "module"):
                names.add(node.attr)
    return {name for name in names if is_private(name)}


def used(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.ImportFrom):
            yield from (alias.name for alias in node.names)
            yield from (node.module or "").split(".")
        elif isinstance(node, ast.Import):
            yield from (part for alias in node.names for part in alias.name.split("."))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr"):
            yield from (a.value for a in node.args[1:2] if isinstance(a, ast.Constant) and isinstance(a.value, str))


@functools.cache
def overridden() -> set[str]:
    """Private methods of other packages' classes that strop's replace: in all trainers and configs, and their bases."""
    found: set[str] = set()
    for method in METHODS:
        for bases in (method.trainer().__mro__, method.config().__mro__):
            ours = [cls for cls in bases if cls.__module__.startswith("strop.")]
            theirs = {name for cls in bases if cls not in ours and cls is not object for name in vars(cls)}
            found |= {name for cls in ours for name in vars(cls) if is_private(name) and name in theirs}
    return found


def foreign() -> dict[str, list[str]]:
    """Private name that is not strop's own -> the files that use it."""
    everything = list(trees())
    own = set().union(*(defined(tree) for _, tree in everything)) - overridden()
    found: dict[str, set[str]] = defaultdict(set)
    for file, tree in everything:
        for name in used(tree):
            if is_private(name) and name not in own:
                found[name].add(file)
        for name in overridden() & defined(tree):
            found[name].add(file)
    return {name: sorted(files) for name, files in sorted(found.items())}


def listed() -> dict[str, str]:
    """Name -> package and reason, from the list."""
    lines = [line for line in LIST.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    return {name.strip(): reason.strip() for name, reason in (line.split(" ", 1) for line in lines)}


def test_private_names_of_dependencies_are_listed() -> None:
    found, known = foreign(), listed()
    unlisted = {name: files for name, files in found.items() if name not in known}
    assert not unlisted, f"use something public instead, or add to {LIST.name} why not: {unlisted}"


def test_the_list_holds_nothing_that_is_not_used() -> None:
    assert set(listed()) <= set(foreign())


def test_replaced_methods_exist_in_the_installed_parent() -> None:
    assert {"_save_checkpoint", "_get_output_dir", "_save", "_load_best_model"} <= overridden()
