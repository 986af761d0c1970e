"""What every model that judges or scores texts needs: batches of bounded size, its tokenizer, how far it can read."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from strop.errors import ConfigError, SetupError
from strop.model import evaluating, load_tokenizer


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


@contextlib.contextmanager
def reading(model: torch.nn.Module) -> Iterator[None]:
    """No gradients and no dropout inside; afterwards every module has the mode it had."""
    with torch.no_grad(), evaluating(model):
        yield


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
