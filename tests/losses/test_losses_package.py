"""The package itself: its exports, and that losses stay pure functions of tensors and numbers."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

from strop import losses

SOURCES = sorted(Path(losses.__file__).parent.glob("*.py"))
ALLOWED_IMPORTS = ("strop.losses", "strop.errors", "strop.records", "strop.device", "strop.lazy", "torch", "__future__")
STANDARD = ("math", "collections.abc", "typing", "dataclasses", "warnings")


@pytest.mark.parametrize("module", losses.EXPORTS)
def test_exports_live_where_they_say(module):
    found = importlib.import_module(f"strop.losses.{module}")
    for name in losses.EXPORTS[module]:
        assert getattr(losses, name) is getattr(found, name)
        if callable(getattr(found, name)):
            assert getattr(found, name).__doc__, name


def test_exports_are_sorted_and_unique():
    every = [name for names in losses.EXPORTS.values() for name in names]
    assert len(every) == len(set(every))
    assert losses.__all__ == sorted(every) == dir(losses)
    assert all(list(names) == sorted(names) for names in losses.EXPORTS.values())


def test_type_checkers_see_the_same_modules():
    tree = ast.parse(Path(losses.__file__).read_text(encoding="utf-8"))
    starred = {
        node.module.removeprefix("strop.losses.")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.names[0].name == "*"
    }
    assert starred == set(losses.EXPORTS)


def test_unknown_export():
    with pytest.raises(AttributeError, match="no attribute 'ppo_loss'"):
        _ = losses.ppo_loss


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_losses_see_tensors_and_numbers_only(source):
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else modules
        for module in modules:
            assert module in STANDARD or module.startswith(ALLOWED_IMPORTS), f"{source.name} imports {module}"


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_no_loss_averages_over_its_batch(source):
    """`mean` over a batch would divide by a micro-batch's count: only reduce.py divides by counts, and it sums."""
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            assert node.func.attr != "mean", f"{source.name}:{node.lineno}"
