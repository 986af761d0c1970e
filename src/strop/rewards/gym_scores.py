"""Scores of `reasoning-gym`'s task generators as rewards."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from strop.errors import ConfigError, DataError, SetupError, did_you_mean
from strop.rewards.texts import completion_text


class ReasoningGymReward:
    """The task's own `score_answer` as a reward, with values in [0, 1].

    The rows need the columns of the generated items: `question`, `answer` and `metadata` (a dict, or a JSON string of
    it, which tables hold better), or one column `entry` with the whole item.

    Args:
        dataset_name: a reasoning-gym task, such as "spell_backward".
        answer_tag: the answer is what stands in the last `<tag>...</tag>`; a completion without it scores 0. None:
            the whole completion, blanks at both ends aside.

    Raises:
        SetupError: reasoning-gym is not installed.
        ConfigError: there is no such task.
    """

    requires: ClassVar = {"reasoning_gym": "reasoning-gym"}

    def __init__(self, dataset_name: str, *, answer_tag: str | None = None) -> None:
        self.dataset_name = dataset_name
        self.answer_tag = answer_tag
        self.reward_name = dataset_name
        _score_function(dataset_name)

    def __call__(
        self,
        completions: Sequence[Any],
        answer: Sequence[Any] | None = None,
        question: Sequence[Any] | None = None,
        metadata: Sequence[Any] | None = None,
        entry: Sequence[Any] | None = None,
        **kwargs: Any,
    ) -> list[float]:
        if entry is None:
            if answer is None or metadata is None:
                raise DataError(
                    f"The reasoning-gym reward '{self.dataset_name}' needs the columns 'answer' and 'metadata' "
                    "(and 'question' for some tasks), or a column 'entry' with the generated items."
                )
            questions = question if question is not None else [None] * len(completions)
            columns = zip(questions, answer, metadata, strict=True)
            entry = [{"question": q, "answer": a, "metadata": _decoded(m)} for q, a, m in columns]
        scorer = _score_function(self.dataset_name)
        return [
            float(scorer(self._answer(completion_text(completion)), _decoded(item)))
            for completion, item in zip(completions, entry, strict=True)
        ]

    def _answer(self, text: str) -> str | None:
        if self.answer_tag is None:
            return text.strip()
        _, opened, rest = text.rpartition(f"<{self.answer_tag}>")
        inside, closed, _ = rest.partition(f"</{self.answer_tag}>")
        return inside.strip() if opened and closed else None


reasoning_gym_reward = ReasoningGymReward


@functools.cache
def _score_function(dataset_name: str) -> Any:
    try:
        from reasoning_gym.factory import DATASETS, get_score_answer_fn
    except ImportError:
        raise SetupError("This reward needs the package reasoning-gym: pip install reasoning-gym") from None
    if dataset_name not in DATASETS:
        raise ConfigError(f"reasoning-gym has no task '{dataset_name}'.{did_you_mean(dataset_name, DATASETS)}")
    return get_score_answer_fn(dataset_name)


def _decoded(value: Any) -> Mapping[str, Any]:
    return json.loads(value) if isinstance(value, str) else value
