"""Tiny tokenizers and models for reward tests: built in code, seeded, milliseconds each."""

from __future__ import annotations

import string

import pytest

LETTERS = string.ascii_letters + string.digits + " .,:;!?'\"#*_=+-/()[]{}<>\n"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tokenizer(*, pad: str = "<|im_end|>", chat: bool = True, bos: str | None = None):
    """A tokenizer with one token per character; by default pad is eos."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<unk>", "<bos>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {token: index for index, token in enumerate([*special, *LETTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, vocabulary[bos])]
        )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token=pad, unk_token="<unk>", bos_token=bos
    )
    wrapped.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    wrapped.chat_template = CHATML if chat else None
    return wrapped


def build_model(kind: str, *, labels: int = 1, seed: int = 0, positions: int = 512, pad_id: int = 4):
    """A two-layer Llama for "score", "step" or "lm"."""
    import torch
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        LlamaForSequenceClassification,
        LlamaForTokenClassification,
    )

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(LETTERS) + 5,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=positions,
        pad_token_id=pad_id,
        num_labels=labels,
        initializer_range=0.5,
    )
    classes = {
        "score": LlamaForSequenceClassification,
        "step": LlamaForTokenClassification,
        "lm": LlamaForCausalLM,
    }
    return classes[kind](config).double().eval()


@pytest.fixture
def make_tokenizer():
    """`build_tokenizer`, as a fixture."""
    return build_tokenizer


@pytest.fixture
def make_model():
    """`build_model`, as a fixture."""
    return build_model


@pytest.fixture
def tokenizer():
    """The chat tokenizer whose padding token is its end-of-turn token."""
    return build_tokenizer()
