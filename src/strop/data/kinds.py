"""The kinds of data and the shapes rows come in; which of them a method takes; what to say when they do not fit."""

from __future__ import annotations

import difflib
import enum
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from strop.data.options import TokenizeOptions
from strop.data.rows import plain
from strop.errors import DataError


class DatasetKind(enum.StrEnum):
    """The kinds of rows; each may be plain text or conversational."""

    LANGUAGE_MODELING = "language_modeling"
    PROMPT_ONLY = "prompt_only"
    PROMPT_COMPLETION = "prompt_completion"
    PREFERENCE = "preference"
    UNPAIRED_PREFERENCE = "unpaired_preference"
    STEPWISE = "stepwise"
    TOKENIZED = "tokenized"


FORMS: dict[str, tuple[str, ...]] = {
    "token_pair": ("chosen_ids", "rejected_ids"),
    "token_completion": ("prompt_ids", "completion_ids"),
    "tokens": ("input_ids",),
    "pair": ("chosen", "rejected"),
    "steps": ("prompt", "completions", "labels"),
    "labelled": ("prompt", "completion", "label"),
    "labelled_messages": ("messages", "label"),
    "labelled_conversations": ("conversations", "label"),
    "completion": ("prompt", "completion"),
    "messages": ("messages",),
    "conversations": ("conversations",),
    "text": ("text",),
    "prompt": ("prompt",),
}
"""The shapes that rows come in, and the columns each needs. The order decides when a row has several."""

DETECTED = {
    **dict.fromkeys(("token_pair", "token_completion", "tokens"), DatasetKind.TOKENIZED),
    **dict.fromkeys(("labelled", "labelled_messages", "labelled_conversations"), DatasetKind.UNPAIRED_PREFERENCE),
    **dict.fromkeys(("messages", "conversations", "text"), DatasetKind.LANGUAGE_MODELING),
    "pair": DatasetKind.PREFERENCE,
    "steps": DatasetKind.STEPWISE,
    "completion": DatasetKind.PROMPT_COMPLETION,
    "prompt": DatasetKind.PROMPT_ONLY,
}
"""What a shape is taken for when nobody says what it is for."""

_WHOLE = ("messages", "conversations")
ACCEPTED: dict[DatasetKind, tuple[str, ...]] = {
    DatasetKind.LANGUAGE_MODELING: ("tokens", "token_completion", "labelled", "completion", *_WHOLE, "text"),
    DatasetKind.PROMPT_COMPLETION: ("token_completion", "labelled", "completion", *_WHOLE),
    DatasetKind.PREFERENCE: ("token_pair", "pair"),
    DatasetKind.UNPAIRED_PREFERENCE: (
        "token_completion",
        "token_pair",
        "labelled",
        "labelled_messages",
        "labelled_conversations",
        "pair",
        "steps",
    ),
    DatasetKind.PROMPT_ONLY: ("prompt", "pair", "tokens"),
    DatasetKind.STEPWISE: ("steps",),
    DatasetKind.TOKENIZED: ("tokens", "token_completion"),
}
"""The shapes that a method's kind can be made of, best first."""

NEEDS = {
    DatasetKind.LANGUAGE_MODELING: "'text', or 'messages', or 'prompt' and 'completion'",
    DatasetKind.PROMPT_COMPLETION: "'prompt' and 'completion', or 'messages' that end in an answer",
    DatasetKind.PREFERENCE: "'chosen' and 'rejected', and best a 'prompt' too",
    DatasetKind.UNPAIRED_PREFERENCE: "'prompt', 'completion' and 'label' (true or false), or 'chosen' and 'rejected'",
    DatasetKind.PROMPT_ONLY: "'prompt'",
    DatasetKind.STEPWISE: "'prompt', 'completions' (a list of steps) and 'labels' (one per step)",
    DatasetKind.TOKENIZED: "'input_ids', or 'prompt_ids' and 'completion_ids'",
}
FITS = {
    DatasetKind.LANGUAGE_MODELING: "SFT",
    DatasetKind.PROMPT_COMPLETION: "SFT or GKD",
    DatasetKind.PREFERENCE: "DPO, ORPO, CPO or Reward (KTO and BCO too: pairs are split into labelled answers)",
    DatasetKind.UNPAIRED_PREFERENCE: "KTO or BCO",
    DatasetKind.PROMPT_ONLY: "GRPO, RLOO, PPO, OnlineDPO, NashMD or XPO",
    DatasetKind.STEPWISE: "PRM",
    DatasetKind.TOKENIZED: "SFT",
}
ALIASES = {
    "prompt": ("instruction", "question", "query", "input", "problem", "user"),
    "completion": ("response", "output", "answer", "reply", "solution", "target"),
    "chosen": ("accepted", "preferred", "better", "winner", "response_chosen", "positive"),
    "rejected": ("dispreferred", "worse", "loser", "response_rejected", "negative"),
    "text": ("content", "document", "body"),
    "messages": ("conversation", "dialog", "dialogue", "chat", "turns"),
    "label": ("labels", "is_good", "thumbs_up", "feedback"),
    "completions": ("steps",),
}
"""Names that other data sets use for our columns; for hints only, nothing is renamed unasked."""


def is_label(value: Any) -> bool:
    """Whether a value can only be meant as true or false: bool, 0 / 1, or such a word from a CSV file."""
    value = plain(value)
    if isinstance(value, str):
        return value.strip().lower() in ("true", "false", "0", "1")
    return isinstance(value, bool) or (isinstance(value, int | float) and value in (0, 1))


def form_of(row: Mapping[str, Any], accepted: Iterable[str], options: TokenizeOptions) -> str | None:
    """The first accepted shape whose columns all have values, else one whose columns are all there, else None."""
    custom = options.dataset_text_field
    accepted = tuple(accepted)
    if custom != "text" and "text" in accepted and row.get(custom) is not None:
        return "text"
    for present in (lambda name: row.get(name) is not None, lambda name: name in row):
        for form in accepted:
            names = (custom,) if form == "text" else FORMS[form]
            if not all(map(present, names)):
                continue
            # A column called `label` beside text may be anything; it is a preference only if it is true or false.
            label = row.get("label")
            if form == "labelled" and "completion" in accepted and label is not None and not is_label(label):
                continue
            return form
    return None


def columns_error(source: str, columns: Iterable[str], row: Mapping[str, Any], kind: DatasetKind) -> DataError:
    """The message for data whose columns fit another method, or none."""
    columns = list(columns)
    form = form_of(row, FORMS, TokenizeOptions())
    if form is None:
        advice = rename_hint(columns)
    else:
        fitting = DETECTED[form]
        advice = f" Rows like these ({fitting}) fit {FITS[fitting]}.{rename_hint(columns, kind)}"
    return DataError(f"{source}: {kind} data need the columns {NEEDS[kind]}; found {names_of(columns)}.{advice}")


def rename_hint(columns: Iterable[str], kind: DatasetKind | None = None) -> str:
    """A sentence that proposes renames for columns that look like ours under another name, or the empty string."""
    columns = list(columns)
    forms = ACCEPTED[kind] if kind else tuple(FORMS)
    wanted = [name for name in dict.fromkeys(n for form in forms for n in FORMS[form]) if not name.endswith("_ids")]
    wanted = [name for name in wanted if name not in columns]
    free = {column.lower(): column for column in columns if all(column not in names for names in FORMS.values())}
    few = list(islice(free, 1000))  # bounded: to look through all names of a wide table takes seconds
    renames: dict[str, str] = {}
    for near in (False, True):  # what is spelt alike but for one letter must not take a column that fits exactly
        for name in wanted:
            if name in renames.values():
                continue
            match = next((free[alias] for alias in (name, *ALIASES.get(name, ())) if alias in free), None)
            if match is None and near:
                match = next((free[alike] for alike in difflib.get_close_matches(name, few, n=1)), None)
            if match is not None and match not in renames:
                renames[match] = name
    if not renames:
        return ""
    mapping = ",".join(f"{ours}={theirs}" for theirs, ours in renames.items())
    return (
        f' If these are the same under other names, set columns="{mapping}" (on the command line --columns {mapping}).'
    )


def names_of(columns: Iterable[str]) -> str:
    names = list(columns)
    shown = ", ".join(map(repr, names[:12])) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
    return shown or "no columns at all"
