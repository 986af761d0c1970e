from __future__ import annotations

from types import SimpleNamespace

import pytest

from strop.errors import ConfigError
from strop.rollout.stopping import StopRule, default_stop_ids
from strop.testing.tokenizers import toy_tokenizer


def first_stop(rule: StopRule, ids: list[int]) -> int | None:
    """Number of tokens after which the rule fires."""
    return next((n for n in range(1, len(ids) + 1) if rule.reached(ids[:n])), None)


def test_a_stop_id_ends_at_itself_only() -> None:
    rule = StopRule([2, 9])
    assert first_stop(rule, [5, 9, 2]) == 2
    assert first_stop(rule, [5, 6]) is None


@pytest.mark.parametrize("text", ["step one END and more", "é END", "      END", "xEND"])
@pytest.mark.parametrize("stop", ["END", " END", "D"])
def test_a_stop_string_ends_as_soon_as_it_is_written(text: str, stop: str) -> None:
    tokenizer = toy_tokenizer()
    ids = tokenizer.encode(text, add_special_tokens=False)
    expected = next((n for n in range(1, len(ids) + 1) if stop in tokenizer.decode(ids[:n])), None)
    assert first_stop(StopRule([], [stop], tokenizer), ids) == expected


def test_only_a_short_tail_is_decoded() -> None:
    lengths = []

    def decode(ids: list[int], **_: object) -> str:
        lengths.append(len(ids))
        return "x" * len(ids)

    rule = StopRule([], ["ab", "abcdef"], SimpleNamespace(decode=decode))
    rule.reached(list(range(1000)))
    assert max(lengths) <= 6 + 4


def test_a_stop_string_may_take_a_token_per_byte() -> None:
    tokenizer = toy_tokenizer()
    ids = tokenizer.encode("aéééééé", add_special_tokens=False)
    assert len(ids) == 13
    assert first_stop(StopRule([], ["éééééé"], tokenizer), ids) == 13


def test_a_space_that_decoding_drops_at_the_start_is_found() -> None:
    """SentencePiece tokenizers strip the first space of whatever they decode."""
    letters = SimpleNamespace(decode=lambda ids, **_: "".join(map(chr, ids)).removeprefix(" "))
    assert first_stop(StopRule([], [" END"], letters), [ord(c) for c in "word END"]) == 8


def test_without_stop_strings_no_tokenizer_is_touched() -> None:
    assert not StopRule([1]).reached([5])
    with pytest.raises(ConfigError, match="tokenizer"):
        StopRule([1], ["END"])


def test_default_stop_ids_are_those_of_model_and_tokenizer() -> None:
    tokenizer = SimpleNamespace(eos_token_id=7)
    model = SimpleNamespace(
        generation_config=SimpleNamespace(eos_token_id=[9, 8]), config=SimpleNamespace(eos_token_id=1)
    )
    assert default_stop_ids(model, tokenizer) == (7, 8, 9)
    bare = SimpleNamespace(generation_config=None, config=SimpleNamespace(eos_token_id=1))
    assert default_stop_ids(bare) == (1,)
    assert default_stop_ids(SimpleNamespace(), SimpleNamespace(eos_token_id=None)) == ()
