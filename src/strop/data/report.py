"""The account of a data set: what was read, kept, cut, left out; how long it is; one row as the model sees it."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import Any

from strop.data.checks import Checked, Counted
from strop.data.findings import REASONS, Finding
from strop.data.truncate import Tokenized

MANY_TRUNCATED = 0.1
"""Above this share of cut trees the report warns instead of mentioning it."""
SAMPLE_TOKENS = 512
"""Tokens of the rendered row that are shown of each part, from its start."""
QUANTILES = {"min": 0.0, "p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}

FOUND_LATE = ("prompt_too_long", "too_long", "cut_identical", "nothing_scored", "empty_prompt", "unrenderable")
"""Reasons that only tokenisation finds."""

FLAGS = {
    "cut": (
        "the prompt's last tokens merge with the answer's first ones, so they are learned as part of the answer",
        "End prompts before a space or a line break, or set boundary='separate'",
    ),
    "apart": (
        "prompt and answer are tokenised apart where together they would merge, as they are when the model answers",
        "End prompts before a space or a line break",
    ),
    "last_turn": (
        "the chat template rewrites earlier turns, so only the last answer is learned",
        "Use a template with {% generation %} marks, or split conversations into one row per answer",
    ),
    "calls_lost": (
        "the chat template does not print tool calls, so they are not learned",
        "Use the template of a model that calls tools (chat_template_path)",
    ),
    "no_stop": (
        "the chat template does not end the answer in a stop token, so the model is not taught to stop",
        "Set eos_token to the token that ends a turn",
    ),
}
"""Flags of token trees that are worth a word: flag -> what, what to do."""


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
    prompt_lengths: array[int] = field(default_factory=lambda: array("i"))
    completion_lengths: array[int] = field(default_factory=lambda: array("i"))
    tree_lengths: array[int] = field(default_factory=lambda: array("i"))
    uncut_lengths: array[int] = field(default_factory=lambda: array("i"))  # longest branches before anything was cut

    @classmethod
    def start(cls, name: str, kind: str, checked: Checked, to_tokenize: int | None) -> DataReport:
        """The report of a checked set before tokenisation."""
        return cls(
            name=name,
            source=checked.source,
            kind=kind,
            rows_read=checked.rows_read,
            trees=len(checked.numbers),
            conversational=checked.conversational,
            to_tokenize=to_tokenize,
            fingerprint=checked.fingerprint,
            prompts=checked.prompts,
            digests=checked.digests,
            alike=checked.alike,
            left_out=checked.left_out,
            noted=list(checked.findings),
        )

    @property
    def complete(self) -> bool:
        """Whether every row has been tokenised."""
        return self.to_tokenize is not None and self.tokenized >= self.to_tokenize

    def leave_out(self, row: int, reason: str, detail: str) -> None:
        """Account for a row that gives no tree."""
        self.left_out.setdefault(reason, Counted()).add(row, detail)

    def add(self, row: int, tree: Tokenized) -> None:
        """Account for a tokenised tree of source row `row`."""
        self.tokenized += 1
        if tree.uncut:
            self.uncut_lengths.append(tree.uncut)
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
                self.flags.setdefault(flag, Counted()).add(row)
        self.prompt_lengths.append(len(tree.prompt_ids))
        self.completion_lengths.extend(map(len, tree.completions))
        self.tree_lengths.append(len(tree.prompt_ids) + sum(map(len, tree.completions)))

    @property
    def lengths(self) -> dict[str, dict[str, int]]:
        """Quantiles of the lengths of prompts, completions, whole trees and uncut branches, in tokens."""
        parts = {
            "prompt": self.prompt_lengths,
            "completion": self.completion_lengths,
            "tree": self.tree_lengths,
            "uncut": self.uncut_lengths,
        }
        return {name: quantiles(values) for name, values in parts.items() if len(values)}

    @property
    def findings(self) -> list[Finding]:
        """Everything worth knowing, the worst first."""
        found = list(self.noted)
        for reason, rows in self.left_out.items():
            detail = rows.first[0][1]
            message = f"{rows.count} left out: {REASONS[reason]} ({rows.rows()}; {detail})"
            if self.stand_ins and reason in FOUND_LATE:
                message += "; the next usable row stands in for each"
            severity = "info" if reason == "label_false" else "warning"
            found.append(Finding(rows.first[0][0], None, severity, message, _advice(reason)))
        for flag, rows in self.flags.items():
            what, fix = FLAGS[flag]
            severity = "info" if flag == "apart" else "warning"
            found.append(Finding(rows.first[0][0], None, severity, f"{what} ({rows.count}: {rows.rows()})", fix))
        if self.truncated:
            share = self.truncated / max(len(self.tree_lengths), 1)
            severity = "warning" if share > MANY_TRUNCATED else "info"
            message = f"{self.truncated} of {len(self.tree_lengths)} trees are cut to length ({share:.0%})"
            whole = quantiles(self.uncut_lengths)
            fix = f"max_length={whole['p99']} would keep 99% of the rows whole, max_length={whole['max']} all of them"
            found.append(Finding(None, None, severity, message, fix))
        if self.split:
            message = f"{self.split} of {len(self.tree_lengths)} trees are longer than a pack and are split, not cut"
            found.append(Finding(None, None, "info", message))
        rank = {"error": 0, "warning": 1, "info": 2}
        return sorted(found, key=lambda finding: rank[finding.severity])

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able copy."""
        return {
            "name": self.name,
            "source": self.source,
            "kind": str(self.kind),
            "rows_read": self.rows_read,
            "trees": self.trees,
            "conversational": self.conversational,
            "tokenized": self.tokenized,
            "complete": self.complete,
            "truncated": self.truncated,
            "split": self.split,
            "stand_ins": self.stand_ins,
            "left_out": {
                reason: {"count": rows.count, "why": REASONS[reason], "rows": [list(pair) for pair in rows.first]}
                for reason, rows in self.left_out.items()
            },
            "lengths": self.lengths,
            "findings": [finding.to_dict() for finding in self.findings],
            "sample": self.sample,
        }

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
            lines += [f"    {part['name']}: {marked(part['tokens'], part['mask'])!r}" for part in self.sample["parts"]]
        return "\n".join(lines)


def _advice(reason: str) -> str:
    advice = {
        "prompt_too_long": "Raise max_length, shorten the prompts, or use truncation_mode='keep_end'",
        "too_long": "Raise max_length",
        "cut_identical": "Raise max_length",
        "nothing_scored": "Raise max_length, or check the loss settings",
        "empty_prompt": "Write a prompt",
        "unrenderable": "Change the row or the template",
    }
    return advice.get(reason, "")


def quantiles(values: array[int]) -> dict[str, int]:
    """Minimum, median, 90th and 99th percentile and maximum: values that occur, none interpolated."""
    ordered = sorted(values)
    return {name: ordered[round(q * (len(ordered) - 1))] for name, q in QUANTILES.items()}


def marked(tokens: list[str], mask: list[int]) -> str:
    """Token texts as one string, with runs of learned tokens in double brackets."""
    text, inside = "", False
    for token, on in zip(tokens, mask, strict=True):
        if bool(on) != inside:
            text += "[[" if on else "]]"
            inside = bool(on)
        text += token
    return text + ("]]" if inside else "")


def sample_of(tree: Tokenized, row: int, tokenizer: Any, score_prompt: bool = False) -> dict[str, Any]:
    """A tree as the model sees it: each token's text, and whether it is learned (1) or only read (0)."""
    names = {1: ["completion"], 2: ["chosen", "rejected"]}.get(len(tree.completions), [])
    size = len(tree.prompt_ids)
    prompt_mask = [0] + [int(score_prompt)] * (size - 1) if size else []
    parts = [("prompt", tree.prompt_ids, prompt_mask)] if size else []
    for index, (name, ids) in enumerate(zip(names, tree.completions, strict=True)):
        mask = list(tree.mask(index))
        if not size and mask and tree.labels is None:
            mask[0] = 0  # nothing stands before it, so it is not predicted
        parts.append((name, ids, mask))
    return {
        "row": row,
        "parts": [
            {
                "name": name,
                "tokens": [_token_text(tokenizer, token) for token in ids[:SAMPLE_TOKENS]],
                "ids": ids[:SAMPLE_TOKENS],
                "mask": mask[:SAMPLE_TOKENS],
                "length": len(ids),
            }
            for name, ids, mask in parts
        ],
    }


def _token_text(tokenizer: Any, token: int) -> str:
    return tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)
