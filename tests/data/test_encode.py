"""The door to the tokenizer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from tests.support.tokenizers import toy_tokenizer

from strop.data.encode import Ask, Encoded, Encoder, common_prefix
from strop.data.options import TokenizeOptions


@pytest.mark.parametrize(
    ("variant", "prefix"),
    [
        ("plain", []),
        ("no_bos", []),
        ("auto_bos", [1]),
        ("auto_both", [1]),
        ("chatml", []),
        ("llama", [1]),
        ("prefix_space", []),
    ],
)
def test_prefix(variant: str, prefix: list[int]) -> None:
    encoder = Encoder(toy_tokenizer(variant), TokenizeOptions())
    assert encoder.prefix == prefix
    assert encoder.with_prefix([9]) == [*prefix, 9] and encoder.with_prefix([*prefix, 9]) == [*prefix, 9]


def test_eos() -> None:
    encoder = Encoder(toy_tokenizer(), TokenizeOptions(stop_token_ids=(4,)))
    assert encoder.with_eos([9]) == [9, 2] and encoder.with_eos([9, 2]) == [9, 2] and encoder.with_eos([9, 4]) == [9, 4]
    assert encoder.with_eos([]) == [2]
    assert Encoder(toy_tokenizer("no_eos"), TokenizeOptions()).with_eos([9]) == [9]


def test_many_texts_take_one_call(calls: Counter[str]) -> None:
    encoder = Encoder(toy_tokenizer(), TokenizeOptions())

    def job(text: str, rounds: int) -> Iterator[Any]:
        found: list[int] = []
        for _ in range(rounds):
            (answer,) = yield Ask([text])
            found += answer.ids
        return found

    results = encoder.run(job(text, rounds) for text, rounds in (("a", 1), ("b", 3), ("c", 0), ("d", 2)))
    a, b, d = (toy_tokenizer().convert_tokens_to_ids(token) for token in "abd")
    assert results == [[a], [b, b, b], [], [d, d]]
    assert calls["__call__"] == 3


def test_offsets_are_given_to_those_who_ask() -> None:
    encoder = Encoder(toy_tokenizer(), TokenizeOptions())
    plain, spans = encoder.encode([Ask(["good ant"]), Ask(["good ant", "a"], offsets=True)])
    assert plain == [Encoded(spans[0].ids)] and spans[0].offsets is not None
    assert "".join("good ant"[a:b] for a, b in spans[0].offsets) == "good ant" and len(spans) == 2


def test_common_prefix() -> None:
    assert common_prefix([1, 2, 3], [1, 2, 4]) == 2 and common_prefix([1, 2], [1, 2, 3]) == 2
    assert common_prefix([], [1]) == 0 and common_prefix([2], [1]) == 0
