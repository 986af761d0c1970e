"""A pairwise judge as a reward: the share of its duels with the other completions of the same prompt that it wins."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, groupby
from typing import Any

from strop.rewards.judges import Judge


class JudgeReward:
    """Win rate within the group of completions of one prompt.

    r_i = mean over the opponents j of P(i beats j), in [0, 1];  None without an opponent or a verdict.

    With two completions per prompt this is P and 1 - P. Completions of one prompt must follow each other.

    Args:
        judge: any `Judge`.
        max_opponents: duels per completion and side: i meets the next `max_opponents` of its group in a circle.
            None: everybody meets everybody.
    """

    runs_models = True
    needs_groups = True

    def __init__(self, judge: Judge, *, max_opponents: int | None = None) -> None:
        self.judge = judge
        self.max_opponents = max_opponents
        self.reward_name = getattr(judge, "name", None) or type(judge).__name__

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **kwargs: Any) -> list[float | None]:
        duels = [duel for group in groups_of(prompts) for duel in self._duels(group)]
        probabilities = self.judge.probabilities(
            [prompts[i] for i, _ in duels], [(completions[i], completions[j]) for i, j in duels]
        )
        won: list[list[float]] = [[] for _ in completions]
        for (i, j), probability in zip(duels, probabilities, strict=True):
            if probability is not None:
                won[i].append(probability)
                won[j].append(1.0 - probability)
        return [sum(shares) / len(shares) if shares else None for shares in won]

    def _duels(self, group: range) -> list[tuple[int, int]]:
        size = len(group)
        reach = size // 2 if self.max_opponents is None else min(self.max_opponents, size // 2)
        duels = []
        for step in range(1, reach + 1):
            ends = size // 2 if 2 * step == size else size  # opposite points of the circle meet once
            duels += [(group[i], group[(i + step) % size]) for i in range(ends)]
        return duels


def groups_of(prompts: Sequence[Any]) -> list[range]:
    """Runs of equal prompts."""
    sizes = [len(list(run)) for _, run in groupby(prompts)]
    return [range(end - size, end) for size, end in zip(sizes, accumulate(sizes), strict=True)]
