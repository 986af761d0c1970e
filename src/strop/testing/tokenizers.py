"""Toy tokenizers: a byte-level BPE trained here in a fraction of a second, at most 300 ids.

`toy_tokenizer("chatml")` returns a fresh object every time, so that a test may change it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

VOCABULARY = 288
"""Ids of the trained part and its special tokens: 5 special, 256 bytes, the rest merges."""
SPECIAL = ("<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
CORPUS = (
    "the good ant saw the bad bee and the cat ran to the dog",
    "good answers are short, bad answers are long; the answer is good",
    "user asks and assistant answers, system tells the assistant what to do",
    "hello world, hello word, the wor is old and the world is wide",
    "step one is good, step two is bad, the end",
) * 4

DEFAULT_SYSTEM = "You are a helper."
CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\n" + DEFAULT_SYSTEM + "<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""As SmolLM2's: a default system prompt, and a line break after every end of turn."""


@lru_cache(maxsize=1)
def _trained() -> str:
    """The trained BPE as JSON."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer.to_str()


def trained() -> Tokenizer:
    """A fresh copy of the BPE."""
    return Tokenizer.from_str(_trained())


PLAIN = {"eos_token": "</s>", "pad_token": "<pad>", "bos_token": "<s>"}
CHAT = {"eos_token": "<|im_end|>", "pad_token": "<pad>", "bos_token": "<|im_start|>", "chat_template": CHATML}
VARIANTS = {"plain": PLAIN, "chatml": CHAT}


def toy_tokenizer(variant: str = "plain", **changes: Any) -> PreTrainedTokenizerFast:
    """A fresh toy tokenizer.

    Args:
        variant: `plain`, or `chatml`: it has a chat template, and ends turns and texts in `<|im_end|>`.
        changes: arguments of `PreTrainedTokenizerFast` that replace the variant's.

    Raises:
        KeyError: an unknown variant.
    """
    return PreTrainedTokenizerFast(tokenizer_object=trained(), **{**VARIANTS[variant], **changes})
