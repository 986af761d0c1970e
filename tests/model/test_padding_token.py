"""The pad token of a scoring model: one that ends no row, the tokenizer's own where that is possible."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from strop.model.padding_token import set_scoring_pad
from strop.testing.tiny import tiny_model

WORDS = {"<e>": 0, "<u>": 1, "ant": 2, "bee": 3, "cat": 4}


def tokenizer_with(*added: str, **special: str) -> Any:
    backend = Tokenizer(WordLevel(WORDS, unk_token="<u>"))
    backend.pre_tokenizer = Whitespace()
    backend.add_special_tokens([AddedToken(token, special=True) for token in added])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<e>", **special)


@pytest.mark.parametrize(
    ("tokenizer", "last_ids", "expected"),
    [
        (tokenizer_with("<|image_pad|>", pad_token="cat"), (), "cat"),
        (tokenizer_with("<|image_pad|>", pad_token="cat"), (4,), "<|image_pad|>"),
        (tokenizer_with("<tool>", "<|reserved_7|>", pad_token="<e>"), (), "<|reserved_7|>"),
        (tokenizer_with("<tool>", pad_token="<e>", unk_token="<u>"), (), "<u>"),
        (tokenizer_with("<tool>"), (), "cat"),
        (tokenizer_with("<tool>"), (4,), "bee"),
    ],
)
def test_the_pad_token_ends_no_row(tokenizer: Any, last_ids: tuple[int, ...], expected: str) -> None:
    model = tiny_model("llama", task="score", vocab_size=16, eos_token_id=[0, 1] if expected == "bee" else 0)
    assert not set_scoring_pad(model, tokenizer, last_ids)
    assert tokenizer.pad_token == expected and model.config.pad_token_id == tokenizer.pad_token_id


def test_an_end_that_only_the_model_knows_is_no_pad_token() -> None:
    tokenizer = tokenizer_with("<|reserved_7|>", pad_token="<u>", unk_token="<u>")
    set_scoring_pad(tiny_model("llama", task="score", vocab_size=16, eos_token_id=[0, 1]), tokenizer, ())
    assert tokenizer.pad_token == "<|reserved_7|>"
