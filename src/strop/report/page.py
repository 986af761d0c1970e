"""The page: one HTML file that shows a run, or several beside each other, and fetches nothing."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from strop.disk import write_text
from strop.plain_text import visible
from strop.report import charts, samples, sections
from strop.report.plain import clean, is_number, mapping, sequence
from strop.report.run import Run, find_runs, read_summary

STYLES = ("uPlot.min.css", "page.css")
SCRIPTS = ("uPlot.iife.min.js", "charts.js", "samples.js", "page.js")


@dataclass
class Book:
    """What a page is made of: the runs of its folders in the order given, and all samples as the page takes them."""

    title: str
    runs: list[Run]
    summary: dict[str, Any] = field(default_factory=dict)
    samples: list[list[dict[str, Any]]] = field(default_factory=list)  # run by run


def read_book(folders: Sequence[str | Path], longest: int = samples.LONGEST) -> Book:
    """The runs in some folders, and in their direct subfolders; runs of the same name get their paths as names.
    Texts of samples are cut to `longest` characters.

    Raises `SetupError` where a folder does not exist or holds no run.
    """
    places = [Path(folder) for folder in folders]
    runs = [run for place in places for run in find_runs(place)]
    names = [run.name for run in runs]
    for run in runs:
        run.name = clean(str(run.folder)) if names.count(run.name) > 1 else run.name
    title = clean(" · ".join(place.resolve().name for place in places))
    summary = read_summary(places[0]) if len(places) == 1 else {}
    rows = [[samples.shown(row, number, longest) for row in run.samples] for number, run in enumerate(runs)]
    return Book(str(summary.get("title") or title), runs, summary, rows)


def write_report(*run_dirs: str | Path, output: str | Path | None = None) -> Path:
    """Write the page of one run, or of several to compare, and return its path.

    Without `output` that is `report.html` in the folder of the run, or `comparison.html` here for several. The page
    holds everything it shows, and a bounded choice of samples (`strop report RUN --serve` pages all of them). Runs in
    direct subfolders (a pipeline of several trainings) belong to it. A run that is still going on can be reported on.

    Raises:
        SetupError: a folder does not exist or holds no run, or the page cannot be written.
    """
    book = read_book(run_dirs)
    path = Path(output or (Path(run_dirs[0]) / "report.html" if len(run_dirs) == 1 else "comparison.html"))
    write_text(path, render(book))
    return path


def payload(book: Book, version: str | None = None) -> dict[str, Any]:
    """What the page's script draws: charts, curves, alarms, samples (none where a server with a version pages them)."""
    runs, keys, live = [], [], version is not None
    for run, rows in zip(book.runs, book.samples, strict=True):
        series = run.metrics.curves
        raised = charts.alarms(run, series)
        keys.append(list(series))
        kept = [] if live else samples.chosen(rows)
        runs.append(
            {
                "name": run.name,
                "method": str(run.config.get("method", "")),
                "state": sections.state_of(run)[0],
                "alarms": raised,
                "head": sections.head(run, series),
                "advice": sections.advice(run, series, raised),
                "curves": charts.curves(series),
                "samples": kept,
                "count": len(rows),
                "rewards": list(dict.fromkeys(name for row in rows for name in row["rewards"])),
                "steps": sorted({row["step"] for row in (rows if live else kept)}),
            }
        )
    return {"live": live, "version": version, "charts": charts.charts(book.runs, keys), "runs": runs}


def render(book: Book, version: str | None = None) -> str:
    """The page as text. Nothing but its own scripts is allowed to run in it, and nothing can be fetched from elsewhere.

    With a `version` it comes from a server, which is asked for samples, and for news of a run that is going on.
    """
    scripts = ["(() => {'use strict';", *map(_asset, SCRIPTS), "})();"]
    script = "\n".join(scripts)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"
    policy += "; connect-src 'self'" if version is not None else ""
    data = json.dumps(payload(book, version), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    data = visible(data).replace("<", "\\u003c")  # nothing in it ends the element that it stands in
    differing = f"<section><h2>Settings that differ</h2>{sections.differences(book.runs)}</section>"
    shell = (_HEADS, differing if len(book.runs) > 1 else "", _DRAWN)
    body = "".join([_hero(book.summary), *shell, *(_documents(run, book) for run in book.runs)])
    title = escape(book.title)
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<title>{title} · strop</title><style>{''.join(map(_asset, STYLES))}</style></head><body>"
        '<a class="skip" href="#charts">To the curves</a>'
        f'<header><span class="brand">strop</span><h1>{title}</h1><p id="status" role="status"></p></header>'
        f"<main>{body}</main><footer>Written by strop from the files of the run; nothing is loaded from elsewhere."
        "</footer>"
    )
    end = f'<script type="application/json" id="payload">{data}</script><script>{script}</script></body></html>\n'
    return visible(page) + end


_HEADS = (
    '<noscript><p class="warn">Curves and samples are drawn by the script in this page, which is switched off.</p>'
    '</noscript><nav id="runs" aria-label="Runs"></nav><div id="heads"></div>'
)
_DRAWN = (
    '<section id="charts" tabindex="-1" aria-label="Curves"></section>'
    '<section id="samples" tabindex="-1" aria-label="Samples"></section>'
)


def _asset(name: str) -> str:
    return resources.files("strop.report").joinpath("assets", name).read_text(encoding="utf-8")


def _documents(run: Run, book: Book) -> str:
    """Data findings and settings of a run; of several, folded away."""
    parts = sections.data(run) + sections.settings(run)
    if not parts:
        return ""
    if len(book.runs) == 1:
        return f"<section>{parts}</section>"
    return f"<section><details><summary>Data and settings of {escape(run.name)}</summary>{parts}</details></section>"


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
