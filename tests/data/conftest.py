"""Fixtures of the data tests: toy tokenizers, and a count of tokenizer calls."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from strop.testing.tokenizers import toy_tokenizer


@pytest.fixture
def tokenizer() -> Any:
    """The plain toy tokenizer."""
    return toy_tokenizer("plain")


@pytest.fixture
def chatml() -> Any:
    """The toy tokenizer with a ChatML template."""
    return toy_tokenizer("chatml")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often a tokenizer was asked to encode, decode or render, by method."""
    counter: Counter[str] = Counter()
    for name in ("__call__", "encode", "decode", "batch_decode", "apply_chat_template", "_encode_plus", "tokenize"):
        original = getattr(PreTrainedTokenizerFast, name)

        def counted(self: Any, *args: Any, _name: str = name, _original: Any = original, **kwargs: Any) -> Any:
            counter[_name] += 1
            return _original(self, *args, **kwargs)

        monkeypatch.setattr(PreTrainedTokenizerFast, name, counted)
    return counter
