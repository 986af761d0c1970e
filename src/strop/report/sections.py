"""The parts of a run that need no script, as HTML: head, what to try next, data findings, settings."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from strop.report.numbers import Curve, duration, recent, short
from strop.report.plain import is_number, mapping, sequence
from strop.report.run import Run, changed

Series = Mapping[str, Curve]
KEY_SETTINGS = (
    "learning_rate", "lr_scheduler_type", "num_train_epochs", "max_steps", "per_device_train_batch_size",
    "gradient_accumulation_steps", "loss_type", "loss_weights", "beta", "max_length", "max_completion_length",
    "num_generations", "temperature", "layout", "bf16", "seed",
)  # fmt: skip
"""Settings shown first; all others are one click away."""
HEAD = (
    ("method", "method", "method"), ("model", "model", "model"), ("data", "data", "dataset"),
    ("adapter", "adapter", "adapter"), ("command", "command", "command"),
)  # fmt: skip
"""What stands at the top of a run: its name there, in run.json, and in config.yaml."""
SILENT_AFTER = 600.0
"""Seconds without a written line after which a run is no longer called running."""
NOT_COMPARED = ("output_dir", "run_name", "logging_dir", "hub_model_id")
"""Settings that differ between any two runs, and mean nothing."""
HEADLINES = ("loss", "eval_loss", "reward", "rewards/accuracies", "accuracy", "eval_accuracy", "mean_token_accuracy")
"""Metrics whose last value stands at the top of a run."""
MAX_FINDINGS = 30
MOST_OPEN = 12
"""Settings that differ, up to which their table is open."""
DATA_FACTS = {
    "rows_read": "rows",
    "trees": "trees",
    "conversational": "conversations",
    "truncated": "cut to length",
    "split": "split by packing",
}
"""Numbers of a data report that are shown, with the names they are shown under."""
LATER = "rows are tokenised when they are needed, and the others had not been needed when this was written."


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], style: str = "") -> str:
    """An HTML table; cells that are numbers are aligned right, cells of type `Html` are taken as they are."""
    head = "".join(f"<th>{escape(str(column))}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    inner = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="scroll"><table class="{style}">{inner}</table></div>'


class Html(str):
    """Text that is HTML already."""


def tiles(facts: Sequence[tuple[str, str]]) -> str:
    """A row of numbers with their names: (name, value) pairs."""
    inner = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts)
    return f'<dl class="tiles">{inner}</dl>' if inner else ""


def head(run: Run, series: Series) -> str:
    """What trains what on which rows, how, by which command, and how far it is."""
    state, said = state_of(run)
    facts = [(name, run.facts.get(key) or run.config.get(other)) for name, key, other in HEAD]
    facts += [("layout", run.facts.get("layout")), ("started", run.facts.get("started"))]
    named = "".join(f"<div><dt>{name}</dt><dd>{escape(_text(value))}</dd></div>" for name, value in facts if value)
    unread = "".join(f'<p class="warn">{escape(problem)}</p>' for problem in run.unread)
    return f'<p class="state {state}">{escape(said)}</p><dl class="facts">{named}</dl>{unread}{_numbers(series)}'


def state_of(run: Run) -> tuple[str, str]:
    """ "ended", "failed", "running" or "silent", and a sentence: which step of how many, and what else is known."""
    total = run.facts.get("steps")
    last = run.metrics.last_step
    steps = f"step {last:,}" + (f" of {total:,}" if is_number(total) and total >= last else "")
    if run.metrics.ended:
        seconds = run.metrics.totals.get("train_runtime", 0.0)
        early = is_number(total) and total > last
        return "ended", f"{'Stopped' if early else 'Finished'}, {steps}, {duration(seconds)} of training"
    if failed := run.facts.get("failed"):
        return "failed", f"Failed, {steps}: {_text(failed)}"
    quiet = max(time.time() - changed(run.folder) / 1e9, 0.0)
    if quiet < SILENT_AFTER:
        return "running", f"Running, {steps}"
    return "silent", f"No end was written: {steps}, and nothing for {duration(quiet)}"


def _numbers(series: Series) -> str:
    facts = [(key, short(recent(series[key]))) for key in HEADLINES if key in series]
    if "num_tokens" in series:
        facts.append(("tokens", short(series["num_tokens"][-1, 1])))
    return tiles(facts)


def advice(run: Run, series: Series, alarms: Sequence[Mapping[str, Any]]) -> str:
    """What to try next: the alarms, then metrics that ended outside their healthy range; a sentence if all is well."""
    known = [(key, entry) for key in series if (entry := run.explained(key)) and entry.bounds]
    outside = [(key, entry) for key, entry in known if not entry.holds(recent(series[key]))]
    rows = []
    for alarm in alarms:
        raised = f"step {_text(alarm['steps'][0])}"
        raised += f" and {alarm['count'] - 1:,} times more" if alarm["count"] > 1 else ""
        rows.append((Html(f'<span class="severity alarm">{escape(alarm["kind"])}</span>'), raised, alarm["text"]))
    rows += [
        (Html(f"<code>{escape(key)}</code>"), f"now {short(recent(series[key]))}; healthy: {entry.range_text}",
         entry.advice) for key, entry in outside
    ]  # fmt: skip
    said = f"{len(known) - len(outside)} of {len(known)} metrics with a known range ended in it." if known else ""
    if not rows:
        return f'<p class="good">{said} No alarm was raised.</p>' if run.metrics.lines else ""
    kind = "warn" if outside else "good"
    return (f'<p class="{kind}">{said}</p>' if said else "") + table(
        ("what", "where", "what to try next"), rows, "advice"
    )


def differences(runs: Sequence[Run]) -> str:
    """The settings in which runs differ, a column for each run."""
    names = dict.fromkeys(name for run in runs for name in run.config if name not in NOT_COMPARED)
    rows = []
    for name in names:
        values = [_text(run.config[name]) if name in run.config else "" for run in runs]
        if len(set(values)) > 1:
            rows.append((Html(f"<code>{escape(name)}</code>"), *values))
    if not rows:
        return '<p class="good">The runs have the same settings.</p>'
    found = table(("setting", *(run.name for run in runs)), rows, "differences")
    return found if len(rows) <= MOST_OPEN else f"<details><summary>{len(rows)} settings</summary>{found}</details>"


def data(run: Run) -> str:
    """What the data checks found, set by set, and one row as the model sees it."""
    parts = []
    for name, report in run.data.items():
        left_out = [mapping(part).get("count") for part in mapping(report.get("left_out")).values()]
        facts = [(label, _text(report[key])) for key, label in DATA_FACTS.items() if report.get(key)]
        if left_out:
            facts.append(("left out", _text(sum(count for count in left_out if is_number(count)))))
        source = f"{report.get('source', '')} ({report.get('kind', '')})" if report.get("source") else ""
        parts.append(f'<h4>{escape(name)} <span class="soft">{escape(source)}</span></h4>{tiles(facts)}')
        if report.get("complete") is False:
            parts.append(
                f'<p class="note">Lengths of the first {escape(_text(report.get("tokenized", 0)))} rows: {LATER}</p>'
            )
        if lengths := {part: mapping(v) for part, v in mapping(report.get("lengths")).items()}:
            columns = list(dict.fromkeys(k for v in lengths.values() for k in v))
            rows = [(part, *(v.get(c, "") for c in columns)) for part, v in lengths.items()]
            parts.append(f"<h5>length in tokens</h5>{table(('', *columns), rows, 'narrow')}")
        parts += [_findings([mapping(f) for f in sequence(report.get("findings"))]), rendered_row(report.get("sample"))]
    return f"<h3>Data</h3>{''.join(parts)}" if parts else ""


def rendered_row(sample: Any) -> str:
    """A row as the model sees it, token by token; the learned tokens are marked."""
    if not (parts := [mapping(part) for part in sequence(mapping(sample).get("parts"))]):
        return ""
    lines = []
    for part in parts:
        shown = sequence(part.get("tokens"))
        tokens = zip(shown, sequence(part.get("mask")), strict=False)
        text = "".join(f'<span class="{"learned" if on else "read"}">{escape(str(t))}</span>' for t, on in tokens)
        text = text.replace("\n", "↵\n")
        length = part.get("length")
        hidden = length - len(shown) if is_number(length) else 0
        more = f' <span class="soft">and {hidden} more tokens</span>' if hidden > 0 else ""
        lines.append(f"<tr><th>{escape(str(part.get('name', '')))}</th><td><pre>{text}{more}</pre></td></tr>")
    key = '<span class="learned">learned</span>, <span class="read">only read</span>'
    heading = f"<h5>row {escape(str(sample.get('row', '')))} as the model sees it: {key}</h5>"
    return f'{heading}<table class="tokens">{"".join(lines)}</table>'


def _findings(findings: Sequence[Mapping[str, Any]]) -> str:
    if not findings:
        return '<p class="good">Nothing to report about these rows.</p>'
    count = len(findings)
    heading = "findings" if count <= MAX_FINDINGS else f"findings (the first {MAX_FINDINGS} of {count})"
    rows = [_finding(finding) for finding in findings[:MAX_FINDINGS]]
    return f"<h5>{heading}</h5>{table(('', 'where', 'what', 'what to do'), rows, 'findings')}"


def settings(run: Run) -> str:
    """The settings that matter most, then every setting, then the versions."""
    if not run.config and not run.facts:
        return ""
    first = [(k, _text(run.config[k])) for k in KEY_SETTINGS if run.config.get(k) not in (None, -1)]
    rows = [(Html(f"<code>{escape(str(k))}</code>"), _text(v)) for k, v in run.config.items()]
    everything = f"<details><summary>All {len(rows)} settings</summary>{table(('setting', 'value'), rows)}</details>"
    versions = mapping(run.facts.get("versions"))
    listed = "".join(f"<li>{escape(str(k))} <b>{escape(str(v))}</b></li>" for k, v in versions.items())
    return f"<h3>Settings</h3>{tiles(first)}{everything if rows else ''}" + (
        f'<ul class="versions">{listed}</ul>' if listed else ""
    )


def _finding(finding: Mapping[str, Any]) -> tuple[Any, ...]:
    severity = str(finding.get("severity", "info"))
    where = finding.get("place") or (f"row {finding['row']}" if finding.get("row") is not None else "")
    where = ", ".join(str(part) for part in (where, finding.get("column")) if part)
    mark = Html(f'<span class="severity {escape(severity)}">{escape(severity)}</span>')
    return mark, where, finding.get("message", ""), finding.get("fix", "")


def _cell(value: Any) -> str:
    if isinstance(value, Html):
        return f"<td>{value}</td>"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f'<td class="number">{short(value) if isinstance(value, float) else format(value, ",")}</td>'
    return f"<td>{escape(_text(value))}</td>"


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, float):
        return short(value)
    if isinstance(value, int):
        return format(value, ",")
    if isinstance(value, list) and all(isinstance(part, (str, int, float)) for part in value):
        return ", ".join(map(_text, value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
