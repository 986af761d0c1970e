"""The words of the demonstration: the project's own list, split once and for all into training and held-out words."""

from __future__ import annotations

import functools
import random
from importlib import resources

HELD_OUT = 400
"""How many words no demonstration and no sampled pair ever uses."""
SPLIT_SEED = 20260
"""Seed of the split. It is part of the task, so that accuracies of different runs compare."""


@functools.cache
def _shuffled() -> tuple[str, ...]:
    """Every word: lower case, 3 to 6 letters, no palindromes (spelled backward they teach copying)."""
    words = resources.files("strop.demo").joinpath("words.txt").read_text(encoding="utf-8").split()
    random.Random(SPLIT_SEED).shuffle(words)
    return tuple(words)


def held_out_words(limit: int | None = None) -> list[str]:
    """The first `limit` (default: all) of the words that are only ever tested on."""
    return list(_shuffled()[:HELD_OUT][:limit])


def train_words() -> list[str]:
    """The words that demonstrations and pairs are made of."""
    return list(_shuffled()[HELD_OUT:])
