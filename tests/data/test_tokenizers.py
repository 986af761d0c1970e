"""The toy tokenizers have the habits that the data tests rely on."""

from __future__ import annotations

import pytest
from tests.support.tokenizers import VARIANTS, toy_tokenizer


@pytest.mark.parametrize("variant", VARIANTS)
def test_small_and_reversible(variant: str) -> None:
    tokenizer = toy_tokenizer(variant)
    assert len(tokenizer) <= 300 and max(tokenizer.get_vocab().values()) < len(tokenizer)
    text = "hello wörld 今\n<|im_end|></s>"
    decoded = tokenizer.decode(tokenizer.encode(text, add_special_tokens=False))
    assert decoded == (" " + text if variant == "prefix_space" else text)


def test_variants() -> None:
    pad_is_eos = toy_tokenizer("pad_is_eos")
    assert pad_is_eos.pad_token_id == pad_is_eos.eos_token_id
    assert toy_tokenizer("no_pad").pad_token_id is None and toy_tokenizer("no_bos").bos_token_id is None
    assert toy_tokenizer("no_eos").eos_token_id is None
    assert toy_tokenizer("auto_bos")("a")["input_ids"][0] == toy_tokenizer("auto_bos").bos_token_id
    assert len(toy_tokenizer("auto_both")("a")["input_ids"]) == 3 and len(toy_tokenizer("plain")("a")["input_ids"]) == 1
    assert toy_tokenizer("chatml").chat_template and toy_tokenizer("plain").chat_template is None


def test_tokens_merge_across_borders() -> None:
    tokenizer = toy_tokenizer()
    assert tokenizer.encode("good")[:2] != tokenizer.encode("goo")


def test_fresh_and_deterministic() -> None:
    first, second = toy_tokenizer(), toy_tokenizer()
    first.add_tokens(["new"])
    assert len(second) < len(first) and toy_tokenizer().get_vocab() == second.get_vocab()
    with pytest.raises(KeyError):
        toy_tokenizer("no such thing")
