"""A chat template taken from another tokenizer: with its tokens, its end of turn, and rows for them in the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from strop.errors import ConfigError
from strop.scripts.templates import clone_chat_template, get_training_chat_template, setup_chat_format
from strop.testing.tiny import tiny_model
from strop.testing.tokenizers import toy_tokenizer


@pytest.fixture
def source(tmp_path: Path) -> str:
    tokenizer = toy_tokenizer("chatml")
    tokenizer.add_tokens(["<|tool|>"], special_tokens=True)
    tokenizer.save_pretrained(tmp_path / "source")
    return str(tmp_path / "source")


def pair() -> tuple[Any, Any]:
    tokenizer = toy_tokenizer("plain")
    return tiny_model("llama", dtype=torch.float32, vocab_size=len(tokenizer)), tokenizer


@pytest.mark.parametrize("multiple", [None, 64])
def test_template_tokens_and_rows_come_along(source: str, multiple: int | None) -> None:
    model, tokenizer = pair()
    before = model.get_input_embeddings().weight[:8].clone()
    own, taken, added = clone_chat_template(model, tokenizer, source, resize_to_multiple_of=multiple)
    donor = toy_tokenizer("chatml")
    assert own is model and taken is tokenizer and tokenizer.chat_template == donor.chat_template
    assert tokenizer.convert_tokens_to_ids("<|tool|>") in added and tokenizer.eos_token == donor.eos_token
    rows = model.get_input_embeddings().num_embeddings
    assert rows >= len(tokenizer) and (multiple is None or rows % multiple == 0 == rows - len(tokenizer))
    assert model.lm_head.weight.shape[0] == rows and torch.equal(model.get_input_embeddings().weight[:8], before)
    assert model.generation_config.eos_token_id == model.config.eos_token_id == tokenizer.eos_token_id
    ids = torch.tensor([[tokenizer.convert_tokens_to_ids("<|tool|>")]])
    assert model(ids).logits.shape[-1] == rows


def test_a_source_without_a_template_is_refused(tmp_path: Path) -> None:
    toy_tokenizer("plain").save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="no chat template to take"):
        clone_chat_template(*pair(), str(tmp_path))


def test_chatml_for_a_tokenizer_without_a_template() -> None:
    model, tokenizer = pair()
    before, rows = model.get_input_embeddings().weight.clone(), model.get_input_embeddings().num_embeddings
    own, taken = setup_chat_format(model, tokenizer)
    assert own is model and taken is tokenizer and tokenizer.eos_token == "<|im_end|>"
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "ant"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|im_start|>user\nant<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids.count(tokenizer.eos_token_id) == 1 and max(ids) < model.get_input_embeddings().num_embeddings
    assert torch.equal(model.get_input_embeddings().weight[:rows], before)
    assert model.generation_config.eos_token_id == model.config.eos_token_id == tokenizer.eos_token_id
    with pytest.raises(ConfigError, match="already"):
        setup_chat_format(model, tokenizer)
    with pytest.raises(ConfigError, match="'chatml' only"):
        setup_chat_format(*pair(), format="alpaca")


def test_no_other_template_is_needed_to_train() -> None:
    assert get_training_chat_template(toy_tokenizer("chatml")) is None
    with pytest.raises(TypeError, match="processing_class"):
        get_training_chat_template()
