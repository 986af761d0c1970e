"""Which charts a page has, and the curves in them, thinned: plain data for the page's script."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from strop.metric import FAMILIES, KL_LIMITS, OTHER, Entry
from strop.report.glossary import GLOSSARY
from strop.report.numbers import Curve, thin
from strop.report.plain import sequence
from strop.report.run import Run

TOGETHER = {
    "rewards by function": ("rewards/*/mean",),
    "rewards of chosen and rejected": ("rewards/chosen", "rewards/rejected"),
    "log-probabilities of chosen and rejected": ("logps/chosen", "logps/rejected"),
    "length of completions": ("completions/min_length", "completions/mean_length", "completions/max_length"),
    "share of clipped tokens": ("clip_ratio/*_mean",),
    "time by part": ("*_time",),
}
"""Title -> metrics (patterns) that are read beside each other, in one chart; one of them alone keeps its name."""
GLANCE = (
    "loss", "reward", "rewards by function", "rewards/margins", "rewards/accuracies", "kl", "objective/kl", "entropy",
    "share of clipped tokens", "length of completions", "completions/clipped_ratio", "accuracy", "time by part",
    "memory_peak",
)  # fmt: skip
"""Charts that stand first, as far as a run has them, with the method's own headline after the loss."""
AT_A_GLANCE = "At a glance"
ALARM_CURVES = {
    "abstained": ("reward", "rewards/*"),
    "zero_variance_groups": ("frac_reward_zero_std", "reward", "reward_std", "pairs/dropped_ratio"),
    "all_truncated": ("completions/*",),
    "all_clipped": ("clip_ratio/*", "policy/clipfrac_avg"),
    "kl": ("kl", "objective/kl"),
}
"""Kind of an alarm -> the metrics it is about; every alarm also stands in the chart of the loss."""


def curves(series: Mapping[str, Curve]) -> dict[str, tuple[list[float], list[float]]]:
    """Metric key -> steps and values, six digits each, thinned."""
    found = {}
    for key, points in series.items():
        kept = thin(points)
        found[key] = (kept[:, 0].tolist(), [float(f"{value:.6g}") for value in kept[:, 1]])
    return found


def charts(runs: Sequence[Run], keys_of: Iterable[Iterable[str]]) -> list[dict[str, Any]]:
    """Every chart of the runs with its title, family, keys (`eval_` ones beside their own), range and meaning.

    `keys_of` are the keys of each run's curves. Order: at a glance, then family by family as in the glossary.
    """
    grouped: dict[str, dict[str, Run]] = {}  # title -> key -> the first run that logs it
    for run, keys in zip(runs, keys_of, strict=True):
        for key in keys:
            grouped.setdefault(_title(key.removeprefix("eval_")), {}).setdefault(key, run)
    found = []
    for title, keys in grouped.items():
        own = {key.removeprefix("eval_") for key in keys}
        first = next(iter(keys))
        entry = keys[first].explained(first)
        found.append(_chart(title if len(own) > 1 else next(iter(own)), list(keys), entry, together=len(own) > 1))
    headline = [str(name) for run in runs for name in sequence(run.facts.get("headline"))]
    glance = list(dict.fromkeys((GLANCE[0], *headline, *GLANCE)))
    return sorted(found, key=lambda chart: _place(chart, [chart["title"], *chart["keys"]], glance))


def _title(key: str) -> str:
    return next((title for title, names in TOGETHER.items() if any(fnmatchcase(key, name) for name in names)), key)


def _chart(title: str, keys: list[str], entry: Entry | None, *, together: bool) -> dict[str, Any]:
    chart: dict[str, Any] = {"title": title, "keys": keys, "family": entry.family if entry else OTHER}
    if entry is None:
        return chart
    shared = entry in GLOSSARY
    chart["rank"] = GLOSSARY.index(entry) if shared else -1
    chart |= {"measure": measure(entry)} | ({} if together else {"about": entry.meaning})
    chart |= {"low": entry.low, "high": entry.high, "healthy": entry.range_text, "advice": entry.advice}
    watched = title in KL_LIMITS and shared  # what a method means by it instead has another limit
    return chart | {"limit": KL_LIMITS[title][0]} if watched else chart


def _place(chart: dict[str, Any], names: Sequence[str], glance: Sequence[str]) -> tuple[int, int, str]:
    """Where a chart stands; what is seen at a glance gets that family."""
    if seen := [glance.index(name) for name in names if name in glance]:
        chart["family"] = AT_A_GLANCE
        return 0, min(seen), ""
    return 1 + FAMILIES.index(chart["family"]), chart.get("rank", len(GLOSSARY)), chart["title"]


def measure(entry: Entry) -> str:
    """Unit and denominator: `nats, per token`."""
    per = entry.per if entry.per.startswith(("sum ", "as ", "running ")) else f"per {entry.per}"
    return per if entry.unit == "none" else f"{entry.unit}, {per}"


def alarms(run: Run, keys: Iterable[str]) -> list[dict[str, Any]]:
    """The run's alarms by kind: the steps they were raised at, the text, and the curves they stand in."""
    found: dict[str, dict[str, Any]] = {}
    for note in run.alarms:
        kind = str(note.get("alarm", "alarm"))
        alarm = found.setdefault(kind, {"kind": kind, "text": str(note.get("text", "")), "steps": []})
        alarm["steps"].append(note.get("step", 0))
    for kind, alarm in found.items():
        patterns = ("loss", *ALARM_CURVES.get(kind, ()))
        alarm["keys"] = [key for key in keys if any(fnmatchcase(key, pattern) for pattern in patterns)]
        alarm["count"], alarm["steps"] = len(alarm["steps"]), alarm["steps"][:200]
    return list(found.values())
