"""Rewards that can be computed from the text or its length alone: format, match, length, repetition.

All of them run in time proportional to their input, without regular expressions, so none can hang. Those with
settings are instances, not closures, so they can be pickled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from strop.errors import ConfigError
from strop.rewards.texts import completion_text


def think_format_reward(completions: Sequence[Any], **kwargs: Any) -> list[float]:
    """1.0 where the completion is `<think>...</think>` and then an answer, else 0.0.

    The text must begin with `<think>`, contain it once, and contain `</think>` after it.

    Args:
        completions: (n,) strings or message lists.

    Returns:
        (n,) 0.0 or 1.0.
    """
    return [float(_is_think_format(completion_text(completion))) for completion in completions]


def exact_match_reward(completions: Sequence[Any], answer: Sequence[Any], **kwargs: Any) -> list[float | None]:
    """1.0 where the completion equals the `answer` column, blanks at both ends aside, else 0.0.

    Args:
        completions: (n,) strings or message lists.
        answer: (n,) column of expected texts or numbers; None abstains.

    Returns:
        (n,) 0.0, 1.0 or None.
    """
    return [
        None if expected is None else float(completion_text(completion).strip() == str(expected).strip())
        for completion, expected in zip(completions, answer, strict=True)
    ]


def length_reward(
    completion_ids: Sequence[Sequence[int]], target_length: Sequence[float | None], **kwargs: Any
) -> list[float | None]:
    """Closeness of a completion's length to the row's `target_length` column, in tokens.

    r = -min(1, | |y| - L | / L), 0 at the target and -1 from twice the target on.

    Args:
        completion_ids: (n,) token ids.
        target_length: (n,) column, tokens, > 0; None abstains.

    Returns:
        (n,) in [-1, 0], or None.

    Differs from the paper: normalised by L, so that short and long targets weigh the same.
    Source: L1, arXiv 2503.04697 (LCPO-Exact subtracts alpha * | |y| - L |).
    """
    return [
        None if target is None else _length_penalty(len(ids), float(target))
        for ids, target in zip(completion_ids, target_length, strict=True)
    ]


class LengthReward:
    """`length_reward` with one target for all rows.

    Args:
        target_length: tokens, > 0.
    """

    reward_name = "length_reward"

    def __init__(self, target_length: float) -> None:
        if not target_length > 0:
            raise ConfigError(f"target_length is {target_length!r}; it must be a positive number of tokens.")
        self.target_length = float(target_length)

    def __call__(self, completion_ids: Sequence[Sequence[int]], **kwargs: Any) -> list[float | None]:
        return [_length_penalty(len(ids), self.target_length) for ids in completion_ids]


class RepetitionPenaltyReward:
    """Penalty for repeated token n-grams.

    r = max_penalty * (1 - unique n-grams / n-grams), and 0 for completions shorter than one n-gram.

    Args:
        ngram_size: tokens per n-gram, >= 1.
        max_penalty: limit for endless repetition, <= 0.

    Source: arXiv 2502.03373, appendix C.2.
    """

    reward_name = "repetition_penalty_reward"

    def __init__(self, ngram_size: int = 3, max_penalty: float = -1.0) -> None:
        problems = []
        if ngram_size < 1:
            problems.append(f"ngram_size is {ngram_size!r}; it must be at least 1")
        if max_penalty > 0:
            problems.append(f"max_penalty is {max_penalty!r}; it must not be positive")
        if problems:
            raise ConfigError.collect("The repetition penalty cannot be set up.", problems)
        self.ngram_size = ngram_size
        self.max_penalty = max_penalty

    def __call__(self, completion_ids: Sequence[Sequence[int]], **kwargs: Any) -> list[float]:
        return [self._penalty(ids) for ids in completion_ids]

    def _penalty(self, ids: Sequence[int]) -> float:
        total = len(ids) - self.ngram_size + 1
        if total < 1:
            return 0.0
        unique = len({tuple(ids[start : start + self.ngram_size]) for start in range(total)})
        return self.max_penalty * (1 - unique / total) if unique < total else 0.0


class SoftOverlongPunishment:
    """Penalty that grows linearly over the last tokens before the length limit.

    r = 0 for |y| <= L - c;  ((L - c) - |y|) / c for L - c < |y| <= L;  -1 beyond L.

    Args:
        max_completion_len: L, tokens, > 0.
        soft_punish_cache: c, tokens, 0 <= c <= L.

    Source: DAPO, arXiv 2503.14476, equation 13.
    """

    reward_name = "soft_overlong_punishment_reward"

    def __init__(self, max_completion_len: int, soft_punish_cache: int) -> None:
        if max_completion_len < 1 or not 0 <= soft_punish_cache <= max_completion_len:
            raise ConfigError(
                f"max_completion_len is {max_completion_len!r} and soft_punish_cache is {soft_punish_cache!r}; "
                "they must satisfy 0 <= soft_punish_cache <= max_completion_len, in tokens."
            )
        self.max_completion_len = max_completion_len
        self.soft_punish_cache = soft_punish_cache

    def __call__(self, completion_ids: Sequence[Sequence[int]], **kwargs: Any) -> list[float]:
        return [self._punishment(len(ids)) for ids in completion_ids]

    def _punishment(self, length: int) -> float:
        free = self.max_completion_len - self.soft_punish_cache
        if length <= free:
            return 0.0
        return (free - length) / self.soft_punish_cache if length <= self.max_completion_len else -1.0


get_length_reward = LengthReward
get_repetition_penalty_reward = RepetitionPenaltyReward
get_soft_overlong_punishment = SoftOverlongPunishment
"""The names that scripts import."""


def _is_think_format(text: str) -> bool:
    opening, closing = "<think>", "</think>"
    return text.startswith(opening) and text.count(opening) == 1 and closing in text


def _length_penalty(length: int, target: float) -> float:
    return -min(1.0, abs(length - target) / target)
