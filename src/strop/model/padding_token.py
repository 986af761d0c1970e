"""A pad token that no row ends with: by it others find the token that a reward model scored.

strop finds that token by length. transformers takes the last one that is not `config.pad_token_id`: where rows end with
the pad token (pad = EOS), that is a token before; where there is none, batches are refused.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from strop.model.wrappers import base_model, is_peft

_SPARE = re.compile("pad|reserved|unused|extra|placeholder", re.IGNORECASE)
"""Names of special tokens that tokenizers keep for such uses."""

ADAPTER_NOTE = (
    "This adapter scores the last token of a text. transformers finds it by the pad token, and an adapter's folder "
    "cannot name that: set model.config.pad_token_id = tokenizer.pad_token_id, with the tokenizer of this folder."
)


def set_scoring_pad(model: nn.Module, tokenizer: Any, last_ids: Collection[int]) -> bool:
    """Give tokenizer and model one pad token, which ends no row.

    Args:
        model: with a scalar head.
        tokenizer: its pad token is kept if it ends nothing.
        last_ids: last tokens of rows, beside the ids that end a text by the tokenizer and the model.

    Returns:
        Whether what is saved will not say so: `model` is an adapter on a base whose own config names another one.
    """
    config = base_model(model).config
    own_end = getattr(config.get_text_config(), "eos_token_id", None)
    pad = _apart(tokenizer, {*last_ids, *_ids(tokenizer.eos_token_id), *_ids(own_end)})
    if pad != tokenizer.pad_token_id:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    unsaid = is_peft(model) and config.get_text_config().pad_token_id != pad
    for part in (config, config.get_text_config()):
        part.pad_token_id = pad
    return unsaid


@contextmanager
def padding_row_kept(cls: Any) -> Iterator[None]:
    """While a model of this class (or None) is read, its embedding of the padding token stays what was saved.

    A few classes zero that row after loading (Youtu); where the output layer is tied to it, the token's logit changes.
    """
    fresh = getattr(cls, "_init_weights", None)
    owner = next((base for base in getattr(cls, "__mro__", ()) if "_init_weights" in vars(base)), None)

    def initialise(model: Any, module: nn.Module) -> None:
        weight: Any = getattr(module, "weight", None)
        row = getattr(module, "padding_idx", None)
        kept = weight.data[row].clone() if row is not None and hasattr(weight, "_is_hf_initialized") else None
        fresh(model, module)  # type: ignore[misc]
        if kept is not None:
            weight.data[row] = kept

    try:
        if owner is not None:
            owner._init_weights = initialise
        yield
    finally:
        if owner is not None:
            owner._init_weights = fresh


def note_in_card(folder: Path, note: str = ADAPTER_NOTE) -> None:
    """Say in the card of a folder, once, what whoever loads it must know."""
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    if note not in text:
        card.write_text(f"{text}\n{note}\n", encoding="utf-8")


def _ids(value: int | list[int] | None) -> list[int]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _apart(tokenizer: Any, ends: set[int]) -> int:
    """The pad token, else a spare special one, else the unknown token, else the rarest: merges stand in order of
    their frequency, so it is the last."""
    added = {number: str(token) for number, token in tokenizer.added_tokens_decoder.items()}
    spare = [number for number, text in sorted(added.items()) if _SPARE.search(text)]
    rarest = sorted(set(tokenizer.get_vocab().values()) - set(added), reverse=True)
    candidates = [tokenizer.pad_token_id, *spare, tokenizer.unk_token_id, *rarest]
    return next(number for number in candidates if number is not None and number not in ends)
