"""Sampled completions: those that go into a page, and those that a query finds, in groups of one prompt."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from strop.plain_text import bounded
from strop.report.plain import MOST_CHARACTERS, is_number, mapping

MOST_SAMPLES = 600
MOST_BYTES = 1_500_000
LONGEST, LONGEST_SERVED = 8_000, MOST_CHARACTERS
"""Most samples of a run in one page, their bytes as JSON, and the characters of one text: in a file, from a server."""
MOST_HELD, A_SAMPLE = 1 << 27, 512
"""Bytes of samples that are held of a run, and what one of them takes beside its text."""
BINS = 20
PAGE = 12
"""Bars of the histogram; groups shown at a time."""


def held(lines: Iterable[tuple[int, dict[str, Any]]]) -> tuple[list[dict[str, Any]], str]:
    """The samples of as many steps as there is room for, spread evenly, and what is to be said of the others.

    `lines` are samples with their sizes in bytes, and are not held together: of a run without end every second, fourth,
    eighth ... step is kept.
    """
    kept: list[tuple[int, int, dict[str, Any]]] = []  # number of the step among those that were sampled, bytes
    number, every, step, size, total = -1, 1, object(), 0, 0
    for length, row in lines:
        total += 1
        if row.get("step") != step:
            step, number = row.get("step"), number + 1
        if number % every or (size > MOST_HELD and every > number):  # one step alone is too much
            continue
        kept.append((number, length + A_SAMPLE, row))
        size += length + A_SAMPLE
        while size > MOST_HELD and every <= number:
            every *= 2
            kept = [entry for entry in kept if entry[0] % every == 0]
            size = sum(entry[1] for entry in kept)
    more = f"samples.jsonl holds {total:,} samples; {len(kept):,} of them, of steps spread over the run, are shown."
    return [row for _, _, row in kept], more if len(kept) < total else ""


def readable(text: Any) -> str:
    """A prompt or completion as text; a conversation as one line per message."""
    if isinstance(text, list):
        parts = [f"{m.get('role', '')}: {m.get('content', '')}" if isinstance(m, dict) else str(m) for m in text]
        return "\n".join(parts)
    return text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)


def shown(row: Mapping[str, Any], run: int, longest: int = LONGEST) -> dict[str, Any]:
    """A sample as the page takes it; `run` is the place of its run. Its rewards are its total and those by name."""
    rewards = {name: value for name, value in mapping(row.get("rewards")).items() if is_number(value)}
    if is_number(row.get("reward")):
        rewards = {"reward": row["reward"], **(rewards if len(rewards) > 1 else {})}
    others = {
        k: v
        for k, v in row.items()
        if k not in ("step", "prompt", "completion", "rewards", "reward", "columns", "notes")
    }
    notes = {name: bounded(readable(v), longest) for name, v in {**others, **mapping(row.get("notes"))}.items()}
    texts = {name: bounded(readable(row.get(name, "")), longest) for name in ("prompt", "completion")}
    return {"run": run, "step": row.get("step", 0), **texts, "rewards": rewards, "notes": notes}


def chosen(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Samples of steps spread evenly over the run, first and last among them, as many as have room in a page."""
    steps: dict[float, list[dict[str, Any]]] = {}
    for row in rows:
        steps.setdefault(row["step"], []).append(row)
    kept: dict[float, list[dict[str, Any]]] = {}
    count = size = 0
    for step in _spread(sorted(steps)):
        for row in steps[step]:
            count, size = count + 1, size + len(json.dumps(row))
            if count > MOST_SAMPLES or size > MOST_BYTES:
                return [row for step in sorted(kept) for row in kept[step]]
            kept.setdefault(step, []).append(row)
    return [row for step in sorted(kept) for row in kept[step]]


def _spread(values: Sequence[float]) -> list[float]:
    """The values in an order of which every beginning is spread evenly: both ends, the middle, the quarters, ..."""
    order = dict.fromkeys((0, len(values) - 1)) if values else {}
    parts = 2
    while len(order) < len(values):
        order |= dict.fromkeys(round(i * (len(values) - 1) / parts) for i in range(1, parts, 2))
        parts *= 2
    return [values[i] for i in order]


@dataclass(frozen=True)
class Query:
    """What of the samples is asked for. `bars` are places in the histogram of `by`, one of the rewards' names."""

    text: str = ""
    step: float | None = None
    by: str = "reward"
    bars: frozenset[int] = frozenset()
    order: str = "newest"  # or "best", "worst"
    offset: int = 0


def find(rows: Sequence[dict[str, Any]], query: Query) -> dict[str, Any]:
    """The histogram of the samples that a query finds, and of those in its bars a page of groups.

    A group is what one prompt got at one step, or, of several runs, what one prompt got in all of them. The page's
    script answers alike where no server is asked.
    """
    wanted = query.text.casefold()
    rows = [row for row in rows if query.step is None or row["step"] == query.step]
    rows = [row for row in rows if not wanted or wanted in f"{row['prompt']}\n{row['completion']}".casefold()]
    values = [row["rewards"][query.by] for row in rows if query.by in row["rewards"]]
    low, high = (min(values), max(values)) if values else (0.0, 0.0)
    counts = [0] * BINS
    for value in values:
        counts[bar_of(value, low, high)] += 1
    if query.bars:
        rated = (row for row in rows if query.by in row["rewards"])
        rows = [row for row in rated if bar_of(row["rewards"][query.by], low, high) in query.bars]
    groups = _groups(rows, query)
    page = groups[query.offset : query.offset + PAGE]
    bars = {"low": low, "high": high, "counts": counts} if values else None
    return {"total": len(rows), "bars": bars, "groups": page, "more": len(groups) > query.offset + PAGE}


def bar_of(value: float, low: float, high: float) -> int:
    """The bar of the histogram that a value falls into."""
    return min(int((value - low) / (high - low) * BINS), BINS - 1) if high > low else 0


def _groups(rows: Sequence[dict[str, Any]], query: Query) -> list[list[dict[str, Any]]]:
    several = len({row["run"] for row in rows}) > 1
    found: dict[Any, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["prompt"] if several else (row["prompt"], row["step"]), []).append(row)
    groups = list(found.values())
    if query.order == "newest":
        return sorted(groups, key=lambda group: -max(row["step"] for row in group))
    sign = -1 if query.order == "best" else 1
    rated = [(min(sign * row["rewards"][query.by] for row in g if query.by in row["rewards"]), i) for i, g in
             enumerate(groups) if any(query.by in row["rewards"] for row in g)]  # fmt: skip
    return [groups[i] for _, i in sorted(rated)]
