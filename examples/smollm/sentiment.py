"""Rewards for sentences of movie reviews: how positive they sound, and whether they are more than one word repeated.

The first is the rule-based scorer of Hutto and Gilbert (2014), in the package `vaderSentiment`: a reward that is cheap,
honest about words, and easily hacked by "great great great"; the second is what keeps it from being hacked that way.
"""

from __future__ import annotations

import functools
import re
from typing import Any

from strop.errors import SetupError

WORD = re.compile(r"[a-z']+")


@functools.cache
def _analyzer() -> Any:
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError:
        raise SetupError(
            "positive_reward needs vaderSentiment. Install it: pip install 'strop[demo-smollm]'."
        ) from None
    return SentimentIntensityAnalyzer()


def positive_reward(completions: list[Any], **columns: Any) -> list[float]:
    """Sentiment of each completion, from -1 (negative) to 1 (positive)."""
    return [float(_analyzer().polarity_scores(text_of(c))["compound"]) for c in completions]


def distinct_words_reward(completions: list[Any], **columns: Any) -> list[float]:
    """Share of a completion's words that it has not said before, 0 to 1; fewer than five words give 0."""
    shares = []
    for completion in completions:
        words = WORD.findall(text_of(completion).lower())
        shares.append(len(set(words)) / len(words) if len(words) >= 5 else 0.0)
    return shares


def text_of(completion: Any) -> str:
    """A completion's text, also where it is a list of messages."""
    return completion if isinstance(completion, str) else completion[-1]["content"]
