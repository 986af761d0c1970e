"""The parts of a run as HTML: overview, curves, samples, data findings, configuration."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from strop.metric import FAMILIES, OTHER, Entry
from strop.report.curves import Curve, Point, chart, short
from strop.report.glossary import GLOSSARY, split_evaluation
from strop.report.plain import is_number, mapping, sequence
from strop.report.run import Run

KEY_SETTINGS = (
    "learning_rate", "lr_scheduler_type", "num_train_epochs", "max_steps", "per_device_train_batch_size",
    "gradient_accumulation_steps", "loss_type", "loss_weights", "beta", "max_length", "max_completion_length",
    "num_generations", "temperature", "layout", "bf16", "seed",
)  # fmt: skip
"""Settings shown first; all others are one click away."""
HEADLINES = ("loss", "eval_loss", "reward", "rewards/accuracies", "accuracy", "eval_accuracy", "mean_token_accuracy")
"""Metrics whose last value stands at the top of a run."""
LAST_SHARE = 0.1
"""Share of a curve's end that counts as 'now' where a value is compared with its healthy range."""
MAX_PROMPTS = 8
MAX_STEPS = 6
MAX_FINDINGS = 30
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


def overview(run: Run) -> str:
    """Numbers of the whole run, and what lies outside its healthy range."""
    totals = run.totals()
    facts = [("optimizer steps", f"{run.last_step:,}")] if run.metrics else []
    if "train_runtime" in totals:
        facts.append(("training time", duration(totals["train_runtime"])))
    series = run.series()
    for key in HEADLINES:
        if key in series:
            facts.append((f"{key}, at the end", short(recent(series[key]))))
    if tokens := series.get("num_tokens"):
        facts.append(("tokens", short(tokens[-1][1])))
    unread = "".join(f'<p class="warn">{escape(problem)}</p>' for problem in run.unread)
    return unread + tiles(facts) + health(run, series)


def health(run: Run, series: Mapping[str, Sequence[Point]]) -> str:
    """The metrics that ended outside their healthy range, with what to do; a sentence if there are none."""
    known = [(key, entry) for key in series if (entry := run.explained(key)) and _bounded(entry)]
    outside = [(key, entry) for key, entry in known if not _inside(recent(series[key]), entry)]
    if not known:
        return ""
    said = f"{len(known) - len(outside)} of {len(known)} metrics with a known range ended in it."
    if not outside:
        return f'<p class="good">{said}</p>'
    rows = [(Html(f"<code>{escape(k)}</code>"), short(recent(series[k])), e.range_text, e.advice) for k, e in outside]
    return f'<p class="warn">{said}</p>' + table(("metric", "now", "healthy", "what to do"), rows, "health")


def charts(run: Run) -> str:
    """A chart per metric, training and evaluation together, grouped by family."""
    series = run.series()
    grouped: dict[str, dict[str, list[Curve]]] = {}
    for key, points in series.items():
        kind, own = split_evaluation(key)
        entry = run.explained(key)
        family = entry.family if entry else OTHER
        grouped.setdefault(family, {}).setdefault(own, []).append(Curve(kind or "train", points))
    parts = []
    for family in FAMILIES:
        ordered = sorted(grouped.get(family, {}).items(), key=lambda item: _rank(item[0], run))
        if cards := [_card(key, curves, run) for key, curves in ordered]:
            parts.append(f'<h3>{escape(family)}</h3><div class="charts">{"".join(cards)}</div>')
    return "".join(parts) or "<p>No metrics were logged.</p>"


def _rank(key: str, run: Run) -> int:
    """Position of a metric in the glossary."""
    entry = run.explained(key)
    return GLOSSARY.index(entry) if entry in GLOSSARY else len(GLOSSARY)


def _card(key: str, curves: list[Curve], run: Run) -> str:
    entry = run.explained(key)
    low, high = (entry.low, entry.high) if entry else (None, None)
    named = len(curves) > 1 or curves[0].kind != "train"
    values = "".join(_value(curve, named) for curve in curves)
    about = f"{escape(entry.meaning)} <span class='unit'>{escape(_measure(entry))}</span>" if entry else ""
    wanted = f"<p class='healthy'>{escape(entry.range_text)}</p>" if entry and entry.range_text else ""
    advice = f"<p class='advice'>{escape(entry.advice)}</p>" if entry and entry.advice else ""
    return (
        f"<figure><figcaption><h4><code>{escape(key)}</code></h4><div>{values}</div></figcaption>"
        f"{chart(curves, title=key, low=low, high=high)}<p>{about}</p>{wanted}{advice}</figure>"
    )


def _value(curve: Curve, named: bool) -> str:
    """The value a curve ended at; where there are two, with name and colour, which makes it the legend."""
    name = f" {curve.kind}" if named else ""
    return f'<span class="{curve.kind}{" named" if named else ""}"><b>{short(recent(curve.points))}</b>{name}</span>'


def _measure(entry: Entry) -> str:
    """Unit and denominator: `nats, per token`."""
    per = entry.per if entry.per.startswith(("sum ", "as ", "running ")) else f"per {entry.per}"
    return per if entry.unit == "none" else f"{entry.unit}, {per}"


def samples(run: Run) -> str:
    """Completions over time: prompts sampled at several steps first, then the last step's others."""
    if not run.samples:
        return ""
    by_prompt: dict[str, list[dict[str, Any]]] = {}
    rows = [_with_rewards(row) for row in run.samples]
    for row in rows:
        by_prompt.setdefault(readable(row.get("prompt", "")), []).append(row)
    ranked = sorted(by_prompt.items(), key=lambda item: -len({row.get("step", 0) for row in item[1]}))[:MAX_PROMPTS]
    columns = _columns_of_samples(rows)
    cards = []
    shown = 0
    for prompt, group in ranked:
        group = _spread(sorted(group, key=lambda row: row.get("step", 0)), MAX_STEPS)
        shown += len(group)
        cells = [
            (row.get("step", ""), Html(f"<pre>{escape(readable(row.get('completion', '')))}</pre>"),
             *(row.get(name, "") for name in columns))
            for row in group
        ]  # fmt: skip
        cards.append(f"<article><pre>{escape(prompt)}</pre>{table(('step', 'completion', *columns), cells)}</article>")
    note = f"{shown} of {len(run.samples):,} sampled completions; all of them are in samples.jsonl."
    return f'<h3>Samples</h3><p class="note">{note}</p><div class="samples">{"".join(cards)}</div>'


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
        text = "".join(f'<span class="{"learned" if on else "read"}">{_visible(token)}</span>' for token, on in tokens)
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


def _visible(token: str) -> str:
    """A token's text with line breaks shown."""
    return escape(str(token)).replace("\n", "↵\n")


def settings(run: Run) -> str:
    """The settings that matter most, then every setting, then the versions."""
    if not run.config and not run.facts:
        return ""
    first = [(k, _text(run.config[k])) for k in KEY_SETTINGS if run.config.get(k) not in (None, -1)]
    rows = [(Html(f"<code>{escape(str(k))}</code>"), _text(v)) for k, v in run.config.items()]
    everything = f"<details><summary>All {len(rows)} settings</summary>{table(('setting', 'value'), rows)}</details>"
    versions = mapping(run.facts.get("versions"))
    layout = f"<p>{escape(str(run.facts['layout']))}</p>" if run.facts.get("layout") else ""
    listed = "".join(f"<li>{escape(str(k))} <b>{escape(str(v))}</b></li>" for k, v in versions.items())
    return f"<h3>Settings</h3>{tiles(first)}{layout}{everything if rows else ''}" + (
        f'<ul class="versions">{listed}</ul>' if listed else ""
    )


def recent(points: Sequence[Point]) -> float:
    """Mean of the last tenth of a curve (at least its last point)."""
    last = points[-max(1, round(len(points) * LAST_SHARE)) :]
    return sum(y for _, y in last) / len(last)


def duration(seconds: float) -> str:
    """`"42 s"`, `"3 min 20 s"`, `"2 h 05 min"`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def readable(text: Any) -> str:
    """A prompt or completion as text; a conversation as one line per message."""
    if isinstance(text, list):
        parts = [f"{m.get('role', '')}: {m.get('content', '')}" if isinstance(m, dict) else str(m) for m in text]
        return "\n".join(parts)
    return str(text)


def _columns_of_samples(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Columns of numbers, then what rewards noted."""
    numbers = {k: None for row in rows for k, v in row.items() if isinstance(v, (int, float)) and k != "step"}
    return list(numbers | {k: None for row in rows for k in mapping(row.get("notes"))})


def _with_rewards(row: Mapping[str, Any]) -> dict[str, Any]:
    """A sample with what rewards noted, and its rewards where there are several, as columns of their own."""
    rewards, notes = row.get("rewards"), mapping(row.get("notes"))
    texts = {name: value if isinstance(value, (int, float)) else readable(value) for name, value in notes.items()}
    return {**texts, **row, **(rewards if isinstance(rewards, dict) and len(rewards) > 1 else {})}


def _spread(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """At most `count` rows, evenly from first to last."""
    if len(rows) <= count:
        return rows
    return [rows[round(i * (len(rows) - 1) / (count - 1))] for i in range(count)]


def _finding(finding: Mapping[str, Any]) -> tuple[Any, ...]:
    severity = str(finding.get("severity", "info"))
    where = finding.get("place") or (f"row {finding['row']}" if finding.get("row") is not None else "")
    where = ", ".join(str(part) for part in (where, finding.get("column")) if part)
    mark = Html(f'<span class="severity {escape(severity)}">{escape(severity)}</span>')
    return mark, where, finding.get("message", ""), finding.get("fix", "")


def _bounded(entry: Entry) -> bool:
    return entry.low is not None or entry.high is not None


def _inside(value: float, entry: Entry) -> bool:
    slack = 1e-6 * max(1.0, abs(value))
    above = entry.low is None or value >= entry.low - slack
    return above and (entry.high is None or value <= entry.high + slack)


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
