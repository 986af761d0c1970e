"""What every model that judges or scores texts needs: batches of bounded size, its tokenizer, how far it can read."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch

from strop.errors import ConfigError, SetupError
from strop.model import base_model, evaluating, load_tokenizer


class TextReader:
    """A model with its tokenizer that reads texts; the arguments are described where a user gives them."""

    def __init__(
        self, model: Any, processing_class: Any, *, name: str | None = None, max_tokens: int, max_length: int | None
    ) -> None:
        self.model = model
        self._inner = base_model(model)
        path = path_of(self._inner)
        self.tokenizer = tokenizer_of(path, processing_class)
        self.reward_name = name or os.path.basename(path.rstrip("/")) or type(self._inner).__name__
        self.max_tokens = max_tokens
        self.max_length = max_length or longest_input(self._inner, self.tokenizer)

    def in_batches(
        self, read: Callable[[list[Any]], Sequence[Any]], inputs: Sequence[Any], n_tokens: Callable[[Any], int] = len
    ) -> list[Any]:
        """What `read` gives for each input, asked a batch of bounded size at a time; None where the input is None."""
        given = [index for index, each in enumerate(inputs) if each is not None]
        found: list[Any] = [None] * len(inputs)
        with torch.no_grad(), evaluating(self.model):
            for batch in batches_by_tokens([n_tokens(inputs[index]) for index in given], self.max_tokens):
                rows = [given[at] for at in batch]
                for row, value in zip(rows, read([inputs[row] for row in rows]), strict=True):
                    found[row] = value
        return found


def batches_by_tokens(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices in batches of at most `max_tokens` tokens each, padding included; sequences of like length together.

    A sequence longer than `max_tokens` is a batch of its own. Models that need no padding stay below the bound.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        longest = lengths[batches[-1][0]] if batches else 0
        if batches and longest * (len(batches[-1]) + 1) <= max_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def path_of(model: Any) -> str:
    """Where a transformers model was loaded from; "" for one that was made in memory."""
    return str(getattr(model.config, "name_or_path", "") or "")


def tokenizer_of(path: str, given: Any = None) -> Any:
    """The tokenizer that was given, or the one saved with the model.

    Raises:
        ConfigError: there is none.
    """
    if given is not None:
        return given
    try:
        return load_tokenizer(path)
    except SetupError:
        raise ConfigError(
            f"The reward model {path or 'that was made in code'} comes without a tokenizer. "
            "Pass it as reward_processing_classes, one per reward, in their order."
        ) from None


def longest_input(model: Any, tokenizer: Any) -> int:
    """How many tokens the model has positions for, and the tokenizer admits."""
    positions = getattr(model.config, "max_position_embeddings", None) or getattr(model.config, "n_positions", None)
    limits = [int(limit) for limit in (positions, getattr(tokenizer, "model_max_length", None)) if limit]
    return min(limits, default=1 << 30)


def default_device() -> str:
    """This process's GPU if there is one, else the CPU."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
