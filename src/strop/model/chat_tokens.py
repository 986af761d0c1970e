"""The tokens of another tokenizer's chat template, taken into a tokenizer and a model that lack them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken

from strop.errors import ConfigError
from strop.model.forward import vocab_size
from strop.model.wrappers import base_model, is_peft


@dataclasses.dataclass(frozen=True)
class Adopted:
    """What a tokenizer was given with another one's chat template, until the models have it too."""

    tokenizer: Any
    ids: Sequence[int]  # of the tokens that were added

    def fit(self, model: Any, peft_config: Any = None) -> Any:
        """Make room in a model; returns the adapter's config, by which the rows of new tokens are trained as well.

        Raises:
            ConfigError: the model has an adapter, beneath which its embeddings cannot grow.
        """
        size = vocab_size(model) or 0
        if is_peft(model) and max(self.ids, default=0) >= size:
            raise ConfigError(
                f"The chat template brings tokens beyond the model's {size} embeddings, and these cannot grow beneath "
                "an adapter. Call strop.clone_chat_template(model, tokenizer, source) before the adapter is put on."
            )
        fit_embeddings(base_model(model), self.tokenizer)
        return peft_config if peft_config is None or not self.ids else self._trained_beside(model, peft_config)

    def _trained_beside(self, model: Any, peft_config: Any) -> Any:
        import peft

        config = peft.LoraConfig(**peft_config) if isinstance(peft_config, dict) else peft_config
        if getattr(config, "trainable_token_indices", 0) is not None:
            return config  # the user's own choice, or a kind of adapter that cannot
        names = {id(module): name.rsplit(".", 1)[-1] for name, module in model.named_modules()}
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
        changes: dict[str, Any] = {"trainable_token_indices": {names[id(embedding)]: list(self.ids)}}
        if head is not None and head.weight is not embedding.weight:
            changes["modules_to_save"] = [*{*(config.modules_to_save or ()), names[id(head)]}]
        return dataclasses.replace(config, **changes)


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
    size = vocab_size(model) or 0
    if needed > size or (multiple and size % multiple):
        model.resize_token_embeddings(max(needed, size), pad_to_multiple_of=multiple)
        size = vocab_size(model) or 0
    model.config.get_text_config().eos_token_id = tokenizer.eos_token_id
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.eos_token_id = tokenizer.eos_token_id
    if multiple is None:
        return []
    spare = [AddedToken(f"<extra_id_{index}>") for index in range(size - len(tokenizer))]
    tokenizer.add_tokens(spare)
    return [token.content for token in spare]
