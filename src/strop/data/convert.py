"""Conversions between kinds of rows, each a pure function of a row."""

from __future__ import annotations

from typing import Any

from strop.data.encode import common_prefix
from strop.data.messages import is_conversation
from strop.records import Row


def unpair(row: Row) -> list[Row]:
    """Preference -> unpaired preference: `(prompt, chosen, True)` and `(prompt, rejected, False)`.

    A row without `prompt` is given one first (`explicit_prompt`). Other columns go into both rows.
    """
    if row.get("prompt") is None:
        row = explicit_prompt(row)
    others = {key: value for key, value in row.items() if key not in ("prompt", "chosen", "rejected")}
    return [
        {"prompt": row["prompt"], "completion": row["chosen"], "label": True, **others},
        {"prompt": row["prompt"], "completion": row["rejected"], "label": False, **others},
    ]


def keep_desirable(row: Row) -> list[Row]:
    """Unpaired preference -> prompt-completion: the row without its label if the label is true, else nothing."""
    return [{key: value for key, value in row.items() if key != "label"}] if row["label"] else []


def join_steps(row: Row, separator: str = "\n") -> Row:
    """Stepwise -> unpaired preference: the steps joined; desirable if every step is (labels of 0.5 and more are)."""
    others = {key: value for key, value in row.items() if key not in ("prompt", "completions", "labels")}
    label = all(float(label) >= 0.5 for label in row["labels"])
    return {"prompt": row["prompt"], "completion": separator.join(row["completions"]), "label": label, **others}


def explicit_prompt(row: Row) -> Row:
    """Implicit -> explicit prompt: what `chosen` and `rejected` share at their start becomes `prompt`.

    Conversations are split between messages and keep at least one assistant message each; texts are split at a word
    boundary and keep at least one character each. A row that has a prompt is returned as it is.
    """
    if row.get("prompt") is not None:
        return row
    split = split_messages if is_conversation(row["chosen"]) else split_text
    prompt, chosen, rejected = split(row["chosen"], row["rejected"])
    return {**row, "prompt": prompt, "chosen": chosen, "rejected": rejected}


def split_messages(chosen: list[Any], rejected: list[Any]) -> tuple[list[Any], list[Any], list[Any]]:
    """The longest common start of two conversations, and the two rests.

    Each rest keeps its last assistant message (its last message, if there is no assistant).
    """
    limit = min(_last_answer(chosen), _last_answer(rejected))
    cut = min(common_prefix(chosen, rejected), limit)
    return chosen[:cut], chosen[cut:], rejected[cut:]


def _last_answer(messages: list[Any]) -> int:
    answers = [i for i, message in enumerate(messages) if message.get("role") == "assistant"]
    return answers[-1] if answers else max(len(messages) - 1, 0)


def split_text(chosen: str, rejected: str) -> tuple[str, str, str]:
    """The longest common start of two texts that ends at a word boundary, and the two rests.

    White space before a word belongs to the word, as in the vocabularies of today, so the prompt ends before it
    where only spaces follow. Scripts written without spaces may be cut after any character.
    """
    limit = min(len(chosen), len(rejected)) - 1  # a rest of nothing cannot be learned from
    cut = max(min(common_prefix(chosen, rejected), limit), 0)
    while cut > 0 and not (_is_boundary(chosen, cut) and _is_boundary(rejected, cut)):
        cut -= 1
    return chosen[:cut], chosen[cut:], rejected[cut:]


def _is_boundary(text: str, cut: int) -> bool:
    """Whether a token is likely to start at `cut`: no word and no run of spaces is split there."""
    before, after = text[cut - 1], text[cut]
    if before == " ":
        return False
    return not (_in_word(before) and _in_word(after))


def _in_word(character: str) -> bool:
    # From U+2E80 on stand the scripts of East Asia, where a word may end after any character.
    return (character.isalnum() or character in "_'") and ord(character) < 0x2E80


def split_ids(chosen: list[int], rejected: list[int]) -> tuple[list[int], list[int], list[int]]:
    """The common start of two id lists, and the two rests of at least one id each (if they have one)."""
    limit = max(min(len(chosen), len(rejected)) - 1, 0)
    cut = min(common_prefix(chosen, rejected), limit)
    return chosen[:cut], chosen[cut:], rejected[cut:]
