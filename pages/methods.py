"""A method's page, from its declarations."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pages.markdown import docstring, table
from strop.methods.registry import Method
from strop.metric import entries_of
from strop.recipes import RECIPES
from strop.settings.config import TrainerConfig
from strop.settings.schema import allowed, describe, field_hints


def page(method: Method) -> str:
    """The page as Markdown."""
    trainer, config = method.trainer(), method.config()
    recipes = [recipe for recipe in RECIPES.values() if recipe.method == method.verb]
    sections = [
        f"# {method.verb}: {method.summary}",
        docstring(trainer.__doc__),
        f"```console\n$ strop {method.verb} --model MODEL --dataset ROWS.jsonl --output_dir runs/{method.verb}\n```",
        "## Its settings\n\nBeside [those of every method](../settings.md).\n\n" + own_settings(config),
        "## What it logs\n\nBeside [what every run logs](../metrics.md).\n\n" + own_metrics(trainer),
    ]
    if recipes:
        named = ", ".join(f"[`{recipe.name}`](../papers.md#{recipe.name})" for recipe in recipes)
        sections.append(f"## Settings of papers\n\n`--recipe NAME`: {named}.")
    sections.append("## A walk through its file\n\n" + "\n\n".join(walk(Path(inspect.getfile(trainer)))))
    return "\n\n".join(sections) + "\n"


def own_settings(config: Any) -> str:
    """Settings that this method adds, with default, allowed values and meaning."""
    texts, hints = describe(config), field_hints(config)
    shared = {field.name for field in dataclasses.fields(TrainerConfig)}
    own = [field for field in dataclasses.fields(config) if field.init and field.name not in shared]
    rows = [(f"`{f.name}`", f"`{f.default!r}`", allowed(hints[f.name]), texts[f.name][1]) for f in own]
    return table(("setting", "default", "allowed", "what it does"), rows) if rows else "None of its own."


def own_metrics(trainer: Any) -> str:
    """Metrics that this method, or its family, explains."""
    rows = [(f"`{entry.key}`", entry.meaning, entry.range_text, entry.advice) for entry in entries_of(trainer)]
    return table(("metric", "meaning", "healthy", "otherwise"), rows) if rows else "Nothing of its own."


def walk(file: Path) -> Iterator[str]:
    """The file in pieces: what is said of a class or function, then its code without that."""
    source = file.read_text(encoding="utf-8")
    tree = ast.parse(source)
    yield f"`{file.relative_to(file.parents[3])}`: {ast.get_docstring(tree)}"
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            parts = [child for child in node.body if isinstance(child, ast.FunctionDef)]
            head = source.splitlines()[node.lineno - 1]
            yield f"### {node.name}"
            yield fenced(head + "\n" + "\n".join(class_level(node, source)))
            for part in parts:
                yield from piece(part, source, f"{node.name}.{part.name}")
        elif isinstance(node, ast.FunctionDef):
            yield from piece(node, source, node.name)


def class_level(node: ast.ClassDef, source: str) -> Iterator[str]:
    """Assignments of the class body: what the declaration says."""
    for child in node.body:
        if isinstance(child, ast.Assign | ast.AnnAssign):
            yield "    " + (ast.get_source_segment(source, child) or "")


def piece(node: ast.FunctionDef, source: str, name: str) -> Iterator[str]:
    """One function: its docstring as text, its lines without it."""
    lines = source.splitlines()
    start = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    said = ast.get_docstring(node)
    code = lines[start - 1 : node.end_lineno]
    if said:
        first, last = node.body[0].lineno, node.body[0].end_lineno or 0
        code = lines[start - 1 : first - 1] + lines[last : node.end_lineno]
    yield f"#### `{name}`" + (f"\n\n{docstring(said)}" if said else "")
    yield fenced(textwrap.dedent("\n".join(code)))


def fenced(code: str) -> str:
    return f"```python\n{code}\n```"
