"""Mathematical correctness of an answer, by the `math-verify` package: `1/2`, `0.5` and `\\frac{1}{2}` are the same.

Parsing and comparing run computer algebra on text that a model wrote, which can take for ever. Inside a `RewardSet`
its timer is the limit; with `isolate=True`, or called by itself in the main thread, each expression has one of its own.
"""

from __future__ import annotations

import functools
import logging
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

from strop.errors import ConfigError, SetupError
from strop.rewards.texts import completion_text
from strop.time_limit import alarm_in_use

_PACKAGES = {"math_verify": "math-verify"}
_PARSE_SECONDS = 10
_VERIFY_SECONDS = 5
LogExtra = Callable[[str, list[Any]], None]


def accuracy_reward(
    completions: Sequence[Any], solution: Sequence[Any], log_extra: LogExtra | None = None, **kwargs: Any
) -> list[float | None]:
    """1.0 where the completion's answer equals the `solution` column mathematically, else 0.0.

    The answer must stand in LaTeX: `\\boxed{...}` first, then any LaTeX introduced as the answer.

    Args:
        completions: (n,) strings or message lists.
        solution: (n,) column of gold answers; None, or one that cannot be parsed, abstains.
        log_extra: given by the caller; receives what was parsed.

    Returns:
        (n,) 0.0, 1.0 or None.

    Raises:
        SetupError: math-verify is not installed.
    """
    return _accuracy([completion_text(completion) for completion in completions], solution, log_extra)


def reasoning_accuracy_reward(
    completions: Sequence[Any],
    solution: Sequence[Any],
    reasoning_delimiters: Sequence[str] | None = None,
    log_extra: LogExtra | None = None,
    **kwargs: Any,
) -> list[float | None]:
    """`accuracy_reward` of what follows the reasoning; 0.0 where the reasoning does not end.

    Args:
        completions: (n,) strings or message lists.
        solution: (n,) column of gold answers; None, or one that cannot be parsed, abstains.
        reasoning_delimiters: strings that end the reasoning; the answer follows the last of them. Default `</think>`.
        log_extra: given by the caller.

    Returns:
        (n,) 0.0, 1.0 or None.

    Differs from TRL: a row whose gold answer cannot be parsed abstains even if its reasoning does not end.
    """
    delimiters = list(reasoning_delimiters or ["</think>"])
    answers = [_after_reasoning(completion_text(completion), delimiters) for completion in completions]
    return _accuracy(answers, solution, log_extra)


class CosineScaledReward:
    """Accuracy scaled by length: right and short is best, wrong and short is worst.

    r = low + (high - low) / 2 * (1 + cos(pi * min(|y| / max_len, 1)))

    with (low, high) = (min_value_correct, max_value_correct) for right answers and (max_value_wrong,
    min_value_wrong) for wrong ones.

    Args:
        max_len: tokens at which the schedule ends, > 0.
        min_value_wrong: reward of a wrong answer of length 0.
        max_value_wrong: reward of a wrong answer of length max_len.
        min_value_correct: reward of a right answer of length max_len.
        max_value_correct: reward of a right answer of length 0.

    Source: arXiv 2502.03373, appendix C.1.
    """

    reward_name = "cosine_scaled_reward"
    requires = _PACKAGES

    def __init__(
        self,
        max_len: int,
        min_value_wrong: float = -1.0,
        max_value_wrong: float = -0.5,
        min_value_correct: float = 0.5,
        max_value_correct: float = 1.0,
    ) -> None:
        if max_len < 1:
            raise ConfigError(f"max_len is {max_len!r}; it must be a positive number of tokens.")
        self.max_len = max_len
        self.wrong = (max_value_wrong, min_value_wrong)  # (long, short)
        self.correct = (min_value_correct, max_value_correct)

    def __call__(
        self,
        completions: Sequence[Any],
        solution: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        **kwargs: Any,
    ) -> list[float | None]:
        accuracy = accuracy_reward(completions, solution)
        return [
            None if right is None else self._scaled(bool(right), len(ids))
            for right, ids in zip(accuracy, completion_ids, strict=True)
        ]

    def _scaled(self, right: bool, length: int) -> float:
        at_end, at_start = self.correct if right else self.wrong
        progress = min(length / self.max_len, 1.0)
        return at_end + 0.5 * (at_start - at_end) * (1.0 + math.cos(progress * math.pi))


get_cosine_scaled_reward = CosineScaledReward
"""The name that scripts import."""


def _accuracy(answers: Sequence[str | None], solution: Sequence[Any], log_extra: LogExtra | None) -> list[float | None]:
    """Compare answers (None: none was given) with gold texts."""
    parse, extract, verify = _math_verify()
    rewards: list[float | None] = []
    parsed_golds: list[str] = []
    parsed_answers: list[str] = []
    for answer, gold_text in zip(answers, solution, strict=True):
        gold = [] if gold_text is None else parse(str(gold_text))
        answer_parsed = extract(answer) if gold and answer is not None else []
        parsed_golds.append(_shown(gold))
        parsed_answers.append(_shown(answer_parsed))
        if not gold:
            rewards.append(None)
        else:
            rewards.append(float(bool(answer_parsed) and verify(gold, answer_parsed)))
    if log_extra is not None:
        log_extra("solution", list(solution))
        log_extra("gold_parsed", parsed_golds)
        log_extra("answer_parsed", parsed_answers)
    return rewards


def _math_verify() -> tuple[Callable[..., Any], ...]:
    """Parse a gold answer, parse a completion, compare the two: with the time limits that are possible here."""
    try:
        import math_verify
        from latex2sympy2_extended import NormalizationConfig
    except ImportError:
        raise SetupError("This reward needs the package math-verify. Install it: pip install math-verify") from None
    signals = threading.current_thread() is threading.main_thread() and not alarm_in_use()
    if not signals:  # the package warns about every call without a limit; the caller holds one
        logging.getLogger("math_verify").setLevel(logging.ERROR)
    extraction = math_verify.LatexExtractionConfig(
        normalization_config=NormalizationConfig(units=True),
        boxed_match_priority=0,
        try_extract_without_anchor=False,
    )
    parse = functools.partial(math_verify.parse, parsing_timeout=_PARSE_SECONDS if signals else None)
    extract = functools.partial(parse, extraction_config=[extraction], extraction_mode="first_match")
    return parse, extract, functools.partial(math_verify.verify, timeout_seconds=_VERIFY_SECONDS if signals else None)


def _after_reasoning(text: str, delimiters: Sequence[str]) -> str | None:
    ends = [at + len(delimiter) for delimiter in delimiters if (at := text.rfind(delimiter)) >= 0]
    return text[max(ends) :] if ends else None


def _shown(parsed: list[Any]) -> str:
    """The parsed text itself (its last entry): printing a symbolic expression can take for ever."""
    texts = [part for part in parsed if isinstance(part, str)]
    return texts[-1][:200] if texts else "[not parsed]"


accuracy_reward.requires = _PACKAGES  # type: ignore[attr-defined]
reasoning_accuracy_reward.requires = _PACKAGES  # type: ignore[attr-defined]
