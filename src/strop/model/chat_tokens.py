"""The tokens of another tokenizer's chat template, taken into a tokenizer and a model that lack them."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken


def adopt_chat_tokens(tokenizer: Any, source: Any) -> list[str]:
    """Give `tokenizer` the chat template of `source`, the added tokens that it lacks, and the token that ends a turn.

    Returns:
        The tokens that were added; they need rows in the model's embeddings (`fit_embeddings`).
    """
    tokenizer.chat_template = source.chat_template
    known = tokenizer.get_vocab()
    new = [token for token in source.added_tokens_decoder.values() if token.content not in known]
    tokenizer.add_tokens(new)
    if source.eos_token is not None:
        tokenizer.eos_token = source.eos_token
    return [token.content for token in new]


def fit_embeddings(model: Any, tokenizer: Any, multiple: int | None = None) -> list[str]:
    """Make room in the model's embeddings for every token, rounded up to a multiple; the model ends at the
    tokenizer's EOS.

    Returns:
        Tokens without meaning that were added, so that tokenizer and embeddings have one size.
    """
    needed = max(tokenizer.get_vocab().values()) + 1
    size = model.get_input_embeddings().num_embeddings
    if needed > size or (multiple and size % multiple):
        model.resize_token_embeddings(max(needed, size), pad_to_multiple_of=multiple)
        size = model.get_input_embeddings().num_embeddings
    model.config.get_text_config().eos_token_id = tokenizer.eos_token_id
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.eos_token_id = tokenizer.eos_token_id
    if multiple is None:
        return []
    spare = [AddedToken(f"<extra_id_{index}>") for index in range(size - len(tokenizer))]
    tokenizer.add_tokens(spare)
    return [token.content for token in spare]
