"""Chat templates: taken from another tokenizer, and what training on assistant turns needs of them."""

from __future__ import annotations

from typing import Any

from strop.errors import ConfigError
from strop.model import load_tokenizer
from strop.model.chat_tokens import adopt_chat_tokens, fit_embeddings


def clone_chat_template(
    model: Any, tokenizer: Any, source_tokenizer_path: str, resize_to_multiple_of: int | None = 64
) -> tuple[Any, Any, list[int]]:
    """Give a model and its tokenizer the chat template of another tokenizer, with its tokens and its end of turn.

    Args:
        model: its embeddings grow to hold the new tokens.
        tokenizer: changed in place.
        source_tokenizer_path: hub id or folder of the tokenizer whose template is taken.
        resize_to_multiple_of: the number of embeddings is rounded up to a multiple of this, and the tokenizer filled
            up with tokens without meaning. None: neither.

    Returns:
        Model, tokenizer, and the ids of the tokens that were added.
    """
    source = load_tokenizer(source_tokenizer_path)
    if not source.chat_template:
        raise ConfigError(f"The tokenizer of {source_tokenizer_path} has no chat template to take.")
    added = adopt_chat_tokens(tokenizer, source)
    added += fit_embeddings(model, tokenizer, resize_to_multiple_of)
    return model, tokenizer, tokenizer.convert_tokens_to_ids(added)


CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def setup_chat_format(
    model: Any, tokenizer: Any, format: str = "chatml", resize_to_multiple_of: int | None = None
) -> tuple[Any, Any]:
    """Give a model and a tokenizer without a chat template ChatML's, with its tokens; a turn's end ends a text.

    Returns:
        Model and tokenizer, both changed in place.

    Raises:
        ConfigError: the tokenizer has a template, or the format is another one.
    """
    if format != "chatml":
        raise ConfigError(f"setup_chat_format knows 'chatml' only, given {format!r}. Set tokenizer.chat_template.")
    if tokenizer.chat_template is not None:
        raise ConfigError(
            "The tokenizer has a chat template already. Leave setup_chat_format out; or set tokenizer.chat_template "
            "to None first, if the model has not been trained on it."
        )
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.eos_token, tokenizer.chat_template = "<|im_end|>", CHATML
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    fit_embeddings(model, tokenizer, resize_to_multiple_of)
    return model, tokenizer


def get_training_chat_template(processing_class: Any = None, tokenizer: Any = None) -> str | None:
    """None: strop's trainers find the assistant's turns in any template, so no other one is needed to train on them.

    A template that rewrites earlier turns is found out in the rows, and then the last turn alone is trained on; the
    data report says so.
    """
    given = processing_class if processing_class is not None else tokenizer
    if given is None:
        raise TypeError("get_training_chat_template needs a tokenizer: pass processing_class=.")
    return None
