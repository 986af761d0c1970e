"""The page: one self-contained HTML file for a run directory and the runs in its subfolders."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from strop.errors import SetupError
from strop.plain_text import visible
from strop.report import sections
from strop.report.plain import clean, is_number, mapping, sequence
from strop.report.run import Run, find_runs, read_summary


def write_report(run_dir: str | Path) -> Path:
    """Write `report.html` into a run directory and return its path.

    The page holds everything it shows: curves as SVG, samples, data findings, settings, versions; no scripts and
    nothing fetched. Runs in direct subfolders (a pipeline of several trainings) come one after the other, in the order
    they were started. A run that is still going on can be reported on.

    Raises:
        SetupError: the folder does not exist or holds no run, or the page cannot be written.
    """
    folder = Path(run_dir)
    page = render(clean(folder.resolve().name), find_runs(folder), read_summary(folder))
    path = folder / "report.html"
    partial = path.with_suffix(".partial")
    try:
        partial.write_text(page, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True) if partial.is_file() else None
        raise SetupError(
            f"{path} cannot be written: {error.strerror}. Make room there, or take away what is in its place."
        ) from None
    return path


def render(name: str, runs: Sequence[Run], summary: Mapping[str, Any]) -> str:
    """The page as text."""
    style = resources.files("strop.report").joinpath("style.css").read_text(encoding="utf-8")
    title = str(summary.get("title") or name)
    body = "".join([_hero(summary), *(_run(run, alone=len(runs) == 1) for run in runs)])
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)} · strop</title><style>{style}</style></head><body>"
        f'<header><div><span class="brand">strop</span><h1>{escape(title)}</h1></div>{_links(runs)}</header>'
        f"<main>{body}</main><footer>Written by strop from the files of the run; nothing is loaded from elsewhere."
        "</footer></body></html>\n"
    )
    return visible(page)  # text of models and files, with nothing in it that acts


def _links(runs: Sequence[Run]) -> str:
    if len(runs) < 2:
        return ""
    links = (f'<a href="#{_anchor(run)}">{escape(run.name)}</a>' for run in runs)
    return f"<nav>{''.join(links)}</nav>"


def _anchor(run: Run) -> str:
    return "run-" + re.sub(r"[^A-Za-z0-9_-]", "-", run.name)


def _hero(summary: Mapping[str, Any]) -> str:
    """What a demonstration or benchmark says about itself: before and after, a note, its own tables."""
    if not summary:
        return ""
    parts = []
    if is_number(summary.get("before")) and is_number(summary.get("after")):
        parts.append(_before_after(summary))
    if summary.get("note"):
        parts.append(f'<p class="note">{escape(str(summary["note"]))}</p>')
    for part in map(mapping, sequence(summary.get("tables"))):
        if rows := [sequence(row) for row in sequence(part.get("rows"))]:
            parts.append(f"<h3>{escape(str(part.get('title', '')))}</h3>")
            parts.append(sections.table(sequence(part.get("columns")), rows, "narrow"))
    return f'<section class="hero">{"".join(parts)}</section>' if parts else ""


def _before_after(summary: Mapping[str, Any]) -> str:
    """Two bars, before and after, on the scale 0 to 1 (or to the larger value)."""
    values = [float(summary["before"]), float(summary["after"])]
    top = max(1.0, *values)
    names = [str(summary.get("before_name", "before")), str(summary.get("after_name", "after"))]
    share = min(values) >= 0 and max(values) <= 1
    bars = "".join(
        f'<div class="bar {kind}"><span>{escape(name)}</span><i style="--share:{max(value, 0) / top:.4f}"></i>'
        f"<b>{f'{value:.1%}' if share else f'{value:.4g}'}</b></div>"
        for kind, name, value in zip(("before", "after"), names, values, strict=True)
    )
    seconds = summary.get("seconds")
    took = f"<p>in {sections.duration(float(seconds))}, training and sampling</p>" if is_number(seconds) else ""
    return f'<h2>{escape(str(summary.get("metric", "")))}</h2><div class="bars">{bars}</div>{took}'


def _run(run: Run, *, alone: bool) -> str:
    method = f'<span class="chip">{escape(run.method)}</span>' if run.method and run.method != run.name else ""
    started = f"<time>{escape(str(run.facts['started']))}</time>" if run.facts.get("started") else ""
    heading = f"<h2>{escape(run.name)} {method}{started}</h2>" if not alone or method or started else ""
    parts = (sections.overview, sections.charts, sections.samples, sections.data, sections.settings)
    return f'<section id="{_anchor(run)}">{heading}{"".join(part(run) for part in parts)}</section>'
