"""One row as a tree, and what of a tree the toy tokenizers say: its texts, and what is learned of them."""

from __future__ import annotations

from typing import Any

from strop.data import DatasetKind, TokenizeOptions, prepare
from strop.records import Example
from strop.testing.tokenizers import DEFAULT_SYSTEM
from tests.support.tokenizers import toy_tokenizer

LANGUAGE, PAIRS = DatasetKind.LANGUAGE_MODELING, DatasetKind.PREFERENCE
LABELLED, PROMPTS, STEPS = DatasetKind.UNPAIRED_PREFERENCE, DatasetKind.PROMPT_ONLY, DatasetKind.STEPWISE
SYSTEM = f"<|im_start|>system\n{DEFAULT_SYSTEM}<|im_end|>\n"
ASKED = SYSTEM + "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def build(row: dict[str, Any], kind: DatasetKind, variant: str = "plain", **options: Any) -> Example:
    return prepare([row], kind, toy_tokenizer(variant), TokenizeOptions(**options))[0]


def texts(example: Example, variant: str = "plain") -> tuple[str, list[str]]:
    """Prompt and completions as text, special tokens included."""
    decode = toy_tokenizer(variant).decode
    return decode(example.prompt_ids), [decode(ids) for ids in example.completions]


def learned(example: Example, variant: str = "plain") -> list[str]:
    """The scored tokens of every completion as text."""
    decode = toy_tokenizer(variant).decode
    return [
        decode([token for token, on in zip(ids, example.mask(i), strict=True) if on])
        for i, ids in enumerate(example.completions)
    ]
