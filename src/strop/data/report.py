"""The account of a data set: what was read, kept, cut, left out; how long it is; one row as the model sees it."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import Any

from strop.data.findings import FLAGS, REASONS, Counted, Finding
from strop.data.truncate import Tokenized
from strop.errors import DataError
from strop.records import Example

logger = logging.getLogger(__name__)

MANY_TRUNCATED = 0.1
"""Above this share of cut trees the report warns instead of mentioning it."""
AS_IT_IS = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
SAMPLE_TOKENS = 512
"""Tokens of the rendered row that are shown of each part, from its start."""
QUANTILES = {"min": 0.0, "p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}

KEPT = ("name", "source", "kind", "rows_read", "trees", "conversational", "tokenized", "complete", "truncated", "split",
        "stand_ins", "lengths", "sample")  # fmt: skip
"""What `data.json` has of the report as it is."""
PARTS = ("prompt", "completion", "tree", "uncut")
"""What lengths are told of; `uncut` is the longest branch of a tree before anything was cut."""
ADVICE = {
    "prompt_too_long": "Raise max_length, shorten the prompts, or use truncation_mode='keep_end'",
    "too_long": "Raise max_length",
    "cut_identical": "Raise max_length",
    "nothing_scored": "Raise max_length, or check the loss settings",
    "empty_prompt": "Write a prompt",
    "unrenderable": "Change the row or the template",
}
"""What to do about rows that are left out for a reason that only tokenisation finds."""


@dataclass(slots=True)
class DataReport:
    """What happened to every row. It grows while rows are tokenised; `complete` says whether all of them are.

    Lengths are in tokens. `to_dict` is `data.json` of a run directory.
    """

    name: str
    source: str
    kind: str
    rows_read: int = 0
    trees: int = 0  # trees offered to the trainer, so far as rows are tokenised
    conversational: int = 0
    tokenized: int = 0  # trees and left-out rows tokenised so far
    to_tokenize: int | None = None  # None for a stream
    truncated: int = 0
    split: int = 0  # trees longer than a pack, which packing splits
    stand_ins: bool = False  # a tree found unusable while in use is replaced by the next usable one
    fingerprint: str = ""  # of the checked rows
    prompts: array[int] = field(default_factory=lambda: array("Q"))  # 8 bytes that stand for the prompt of each case
    digests: array[int] = field(default_factory=lambda: array("Q"))  # the same for all of a case
    alike: array[int] = field(default_factory=lambda: array("Q"))  # and for a case whichever of its answers is better
    left_out: dict[str, Counted] = field(default_factory=dict)
    flags: dict[str, Counted] = field(default_factory=dict)
    noted: list[Finding] = field(default_factory=list)
    sample: dict[str, Any] | None = None
    sizes: dict[str, array[int]] = field(default_factory=lambda: {part: array("i") for part in PARTS})

    @property
    def complete(self) -> bool:
        """Whether every row has been tokenised."""
        return self.to_tokenize is not None and self.tokenized >= self.to_tokenize

    def leave_out(self, row: int, reason: str, detail: str) -> None:
        """Account for a row that gives no tree."""
        self.left_out.setdefault(reason, Counted()).add(row, detail)

    def note_cache(self, trouble: str) -> None:
        """Say, once, what the cache could not do."""
        fix = "Nothing is lost; name another cache_dir if it comes again"
        finding = Finding(None, None, "warning", trouble, fix)
        if finding not in self.noted:
            self.noted.append(finding)
            logger.warning("%s", trouble)

    def flag(self, row: int, key: str) -> None:
        """Count a row that something of `FLAGS` is to be said about."""
        self.flags.setdefault(key, Counted()).add(row)

    def add(self, row: int, tree: Tokenized) -> None:
        """Account for a tokenised tree of source row `row`."""
        self.tokenized += 1
        if tree.uncut:
            self.sizes["uncut"].append(tree.uncut)
        if tree.left_out is not None:
            self.leave_out(row, *tree.left_out)
            self.trees -= 1
            return
        for flag in tree.flags:
            if flag == "truncated":
                self.truncated += 1
            elif flag == "split":
                self.split += 1
            else:
                self.flag(row, flag)
        self.sizes["prompt"].append(len(tree.prompt_ids))
        self.sizes["completion"].extend(map(len, tree.completions))
        self.sizes["tree"].append(len(tree.prompt_ids) + sum(map(len, tree.completions)))

    @property
    def lengths(self) -> dict[str, dict[str, int]]:
        """Quantiles of the lengths of prompts, completions, whole trees and uncut branches, in tokens."""
        return {part: quantiles(values) for part, values in self.sizes.items() if len(values)}

    def _why_left_out(self) -> dict[str, str]:
        """A sentence for each reason: how many rows, why, which."""
        return {
            reason: f"{rows.count} left out: {REASONS[reason]} ({rows.rows()}; {rows.first[0][1]})"
            for reason, rows in self.left_out.items()
        }

    def nothing_left(self) -> DataError:
        """The error for data of which no row can be used."""
        title = f"{self.source}: none of the {self.rows_read} rows can be learned from."
        return DataError.collect(title, list(self._why_left_out().values()))  # type: ignore[return-value]

    @property
    def findings(self) -> list[Finding]:
        """Everything worth knowing, the worst first."""
        found = list(self.noted)
        for reason, message in self._why_left_out().items():
            if self.stand_ins and reason in ADVICE:
                message += "; the next usable row stands in for each"
            severity = "info" if reason == "label_false" else "warning"
            first = self.left_out[reason].first[0][0]
            found.append(Finding(first, None, severity, message, ADVICE.get(reason, "")))
        for flag, rows in self.flags.items():
            what, fix = FLAGS[flag]
            severity = "info" if flag == "apart" else "warning"
            found.append(Finding(rows.first[0][0], None, severity, f"{what} ({rows.count}: {rows.rows()})", fix))
        trees = len(self.sizes["tree"])
        if self.truncated:
            share = self.truncated / max(trees, 1)
            severity = "warning" if share > MANY_TRUNCATED else "info"
            message = f"{self.truncated} of {trees} trees are cut to length ({share:.0%})"
            whole = quantiles(self.sizes["uncut"])
            fix = f"max_length={whole['p99']} would keep 99% of the rows whole, max_length={whole['max']} all of them"
            found.append(Finding(None, None, severity, message, fix))
        if self.split:
            message = f"{self.split} of {trees} trees are longer than a pack and are split, not cut"
            found.append(Finding(None, None, "info", message))
        rank = {"error": 0, "warning": 1, "info": 2}
        return sorted(found, key=lambda finding: rank[finding.severity])

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able copy."""
        left_out = {
            reason: {"count": rows.count, "why": REASONS[reason], "rows": [list(pair) for pair in rows.first]}
            for reason, rows in self.left_out.items()
        }
        findings = [finding.to_dict() for finding in self.findings]
        return {name: getattr(self, name) for name in KEPT} | {"left_out": left_out, "findings": findings}

    def render(self) -> str:
        """The report as text for a terminal."""
        left_out = sum(rows.count for rows in self.left_out.values())
        trees = f"{self.trees} trees" if self.complete or self.to_tokenize is None else f"{self.trees} trees so far"
        lines = [f"{self.name}: {self.source}, {self.kind}: {self.rows_read} rows, {trees}, {left_out} left out"]
        for part, values in self.lengths.items():
            lines.append(f"  {part} tokens: " + ", ".join(f"{key} {value}" for key, value in values.items()))
        if self.to_tokenize is not None and not self.complete:
            lines.append(f"  tokenised so far: {self.tokenized} of {self.to_tokenize}")
        lines += [f"  {finding.severity}: {finding}" for finding in self.findings]
        if self.sample is not None:
            lines.append(f"  row {self.sample['row']} as the model sees it (what it learns stands in [[ ]]):")
            for part in self.sample["parts"]:
                text = "".join(f"[[{text}]]" if learned else text for text, learned in runs_of(part))
                lines.append(f"    {part['name']}: {text!r}")
        return "\n".join(lines)


def quantiles(values: array[int]) -> dict[str, int]:
    """Minimum, median, 90th and 99th percentile and maximum: values that occur, none interpolated."""
    ordered = sorted(values)
    return {name: ordered[round(q * (len(ordered) - 1))] for name, q in QUANTILES.items()}


def runs_of(part: Mapping[str, Any]) -> list[tuple[str, bool]]:
    """The text of a part of a sample, in runs of tokens that are learned and of those that are only read."""
    tokens = zip(part["mask"], part["tokens"], strict=True)
    runs = [("".join(text for _, text in run), bool(on)) for on, run in groupby(tokens, key=itemgetter(0))]
    more = part["length"] - len(part["tokens"])
    return [*runs, (f" ... and {more} more tokens", False)] if more else runs


def sample_of(tree: Example, tokenizer: Any) -> dict[str, Any]:
    """A tree as the model sees it: each token's text, and whether it is learned (1) or only read (0)."""
    names = {1: ["completion"], 2: ["chosen", "rejected"]}.get(len(tree.completions), [])
    size = len(tree.prompt_ids)
    prompt_mask = [0] + [int(tree.score_prompt)] * (size - 1) if size else []
    parts = [("prompt", tree.prompt_ids, prompt_mask)] if size else []
    for index, (name, ids) in enumerate(zip(names, tree.completions, strict=True)):
        mask = list(tree.mask(index))
        if not size and mask and "labels" not in tree.extras:
            mask[0] = 0  # nothing stands before it, so it is not predicted
        parts.append((name, ids, mask))
    return {
        "row": tree.row,
        "parts": [
            {
                "name": name,
                "tokens": [tokenizer.decode([token], **AS_IT_IS) for token in ids[:SAMPLE_TOKENS]],
                "ids": ids[:SAMPLE_TOKENS],
                "mask": mask[:SAMPLE_TOKENS],
                "length": len(ids),
            }
            for name, ids, mask in parts
        ],
    }
