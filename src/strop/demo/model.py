"""The demonstration's model: a character tokenizer and a small Llama, both made in code, nothing downloaded."""

from __future__ import annotations

import string

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
ACCENTED = "àâäçèéêëíîïñóôöùúûüßøåæÿ’–…"
CHARACTERS = "\n\t " + string.ascii_letters + string.digits + string.punctuation + ACCENTED
CONTEXT_TOKENS = 64


def build_tokenizer(context_tokens: int = CONTEXT_TOKENS) -> PreTrainedTokenizerFast:
    """One id per character, 128 in all; encoding adds no special tokens, `</s>` ends a completion."""
    vocabulary = {token: i for i, token in enumerate((*SPECIAL, *CHARACTERS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=context_tokens,
        clean_up_tokenization_spaces=False,
    )


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> LlamaForCausalLM:
    """A Llama of 4 layers and 128 dimensions, 0.77M parameters, with random weights drawn from `seed`.

    Its context is the tokenizer's.
    """
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        initializer_range=0.06,  # 0.02 suits wide models; at 128 dimensions learning starts much later with it
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)
