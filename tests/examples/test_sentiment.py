"""The rewards of the GRPO run on a real model."""

import sys

import pytest
from examples.smollm.sentiment import _analyzer, distinct_words_reward, positive_reward

from strop.errors import SetupError


def test_distinct_words() -> None:
    texts = ["great great great great great", "a b c d e", [{"role": "assistant", "content": "one Two two three four"}]]
    assert distinct_words_reward([*texts, "short one"]) == [0.2, 1.0, 0.8, 0.0]


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    _analyzer.cache_clear()
    monkeypatch.setitem(sys.modules, "vaderSentiment.vaderSentiment", None)
    with pytest.raises(SetupError, match="vaderSentiment"):
        positive_reward(["good"])


def test_sentiment_has_the_right_sign() -> None:
    pytest.importorskip("vaderSentiment")
    _analyzer.cache_clear()
    good, bad = positive_reward(["a wonderful, moving film", [{"role": "assistant", "content": "a dull, awful mess"}]])
    assert good > 0.5 and bad < -0.5
