"""What the data checks say: findings, and the one error that lists the broken rows."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from strop.errors import DataError

SHOWN = 20
"""How many rows of a kind are named; the rest are counted."""
CAUSES = 1000
"""How many causes are told apart: they quote values, and a million broken rows may hold a million values."""
OTHER_CAUSES = (None, "other causes")


@dataclass(slots=True, frozen=True)
class Finding:
    """One thing worth knowing about the data: where, how bad, what, and what to do about it."""

    row: int | None  # number of the (first) source row that it is about, from 0; None: the whole set
    column: str | None
    severity: str  # "error", "warning" or "info"
    message: str
    fix: str = ""
    place: str = ""  # a single row as the reader finds it: "pairs.jsonl, line 18"

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able copy."""
        return asdict(self)

    def __str__(self) -> str:
        where = self.place
        if self.column is not None:
            where += f"{', ' if where else ''}column '{self.column}'"
        return f"{where + ': ' if where else ''}{self.message}{'. ' + self.fix if self.fix else ''}"


@dataclass(slots=True)
class Counted:
    """How many rows, and the first twenty by number with a detail each."""

    count: int = 0
    first: list[tuple[int, str]] = field(default_factory=list)

    def add(self, row: int, detail: str = "") -> None:
        """Count a row."""
        self.count += 1
        if len(self.first) < SHOWN:
            self.first.append((row, detail))

    def rows(self) -> str:
        """`"row 3, 17 and 5 more"`."""
        numbers = ", ".join(map(str, dict.fromkeys(row for row, _ in self.first)))
        more = f" and {self.count - SHOWN} more" if self.count > SHOWN else ""
        return f"row{'s' if self.count > 1 else ''} {numbers}{more}"


class RowProblem(Exception):
    """A row is broken. Raised by the checks of one row, collected by `Problems`; it never reaches a user."""

    def __init__(self, column: str | None, message: str, fix: str = "") -> None:
        super().__init__(message)
        self.column, self.message, self.fix = column, message, fix


class Problems:
    """Collects broken rows: the first 20 in full, all of them as a count per column and cause."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.total = 0
        self.first: list[Finding] = []
        self.causes: Counter[tuple[str | None, str]] = Counter()

    def add(self, row: int, place: str, problem: RowProblem) -> Finding:
        """Note that `row` is broken, and how."""
        self.total += 1
        finding = Finding(row, problem.column, "error", problem.message, problem.fix, place)
        if len(self.first) < SHOWN:
            self.first.append(finding)
        cause = (problem.column, problem.message.split(":")[0])
        self.causes[cause if cause in self.causes or len(self.causes) < CAUSES else OTHER_CAUSES] += 1
        return finding

    def error(self, rows_read: int) -> DataError:
        """The one error that names file, row, column, cause and fix."""
        title = f"{self.source}: {self.total} of {rows_read} rows cannot be used (rows count from 0)."
        lines = [title, *(f"  - {finding}" for finding in self.first)]
        if self.total > len(self.first):
            lines.append(f"  ... and {self.total - len(self.first)} more. By cause:")
            for (column, cause), count in self.causes.most_common(8):
                lines.append(f"      {count} x {f'column {column!r}: ' if column else ''}{cause}")
        lines.append("Mend the rows, or set skip_bad_rows=True to train without them.")
        error = DataError("\n".join(lines))
        error.findings = self.first  # type: ignore[attr-defined]
        return error


def kind_of_value(value: Any) -> str:
    """A short, friendly name for what was given: `"a list"`, `"the number 3"`, `"None"`."""
    if value is None:
        return "None"
    if isinstance(value, bool):
        return f"the boolean {value}"
    if isinstance(value, int | float):
        return "NaN (an empty cell?)" if value != value else f"the number {value}"
    if isinstance(value, str):
        return f"the string {value[:40]!r}" + ("..." if len(value) > 40 else "")
    if isinstance(value, bytes):
        return "bytes"
    if isinstance(value, list | tuple):
        return "an empty list" if not len(value) else f"a list of {type(value[0]).__name__}"
    if isinstance(value, dict):
        return f"an object with keys {list(value)[:6]}"
    return f"a {type(value).__name__}"


REASONS = {
    "prompt_too_long": "the prompt fills max_length, nothing of the completion is left",
    "too_long": "longer than the limit, and this method leaves such rows out instead of cutting them",
    "empty_completion": "a completion is empty",
    "identical": "chosen and rejected are the same, so there is no preference",
    "cut_identical": "chosen and rejected are the same once they are cut to length",
    "nothing_scored": "no token is left to be scored",
    "label_false": "labelled undesirable, and this method imitates desirable answers only",
    "empty_prompt": "the prompt has no tokens, so there is nothing to continue",
    "unrenderable": "the chat template cannot render it",
    "boundary": "the prompt's tokens are no prefix of those of prompt and completion (boundary='error')",
    "positions": "longer than the positions that the model has learned",
    "bad_row": "broken (skip_bad_rows)",
}
"""Why a row is left out: reason -> the sentence that the report prints."""

FLAGS = {
    "no_answer": (
        "the conversation has no assistant message",
        "All of it is learned as text; with assistant_only_loss nothing would be",
    ),
    "repeats_prompt": (
        "the completion begins with the whole prompt again",
        "Remove the prompt from the answers, or the model learns to repeat it",
    ),
    "blank_prompt": (
        "the prompt is empty or white space, so the answer is learned as if nothing had been asked",
        "Write the prompts, or remove the rows",
    ),
    "blank_completion": (
        "a completion is nothing but white space",
        "Remove the rows, unless white space is to be learned",
    ),
    "control_token": (
        "a message holds the text of a control token, which the tokenizer turns into that token",
        "Escape it, unless it is meant",
    ),
    "cut": (
        "the prompt's last tokens merge with the answer's first ones, so they are learned as part of the answer",
        "Begin answers without white space, or end prompts in a control token (the template of chat_template_path)",
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
"""Things about single rows that are worth a word, those that only tokenisation finds last: key -> what, what to do."""
