"""Completions are compared that lie on one context: which do, and what is said where none do."""

from __future__ import annotations

from collections.abc import Sequence

from strop.errors import RolloutError
from strop.online.groups import Group


def comparable(group: Group) -> list[int]:
    """Indices of the completions that lie on the group's own prompt."""
    if group.stretches is None:
        return list(range(len(group.completions)))
    return [index for index, parts in enumerate(group.stretches) if parts is None]


class OneContext:
    """Looks at each round of sampling before anybody is asked to reward it.

    A round of a run in which no two completions could ever be compared stops it: the user's function, environment or
    template makes contexts that differ. Later ones are left out, and counted.
    """

    def __init__(self, method: str) -> None:
        self.method, self.has_compared = method, False

    def check(self, groups: Sequence[Group], *, has_learned: bool) -> None:
        """Raises `RolloutError`. A run that `has_learned`, before it was gone on with too, has compared some."""
        self.has_compared |= has_learned or any(len(comparable(group)) > 1 for group in groups)
        if groups and not self.has_compared:
            raise RolloutError(
                f"{self.method} compares completions of one prompt, and no two completions of a prompt lie on one "
                f"context (row {groups[0].example.row} is the first). A rollout_func must return one context for all "
                "completions of a prompt (no stretches, the same prompt_ids), reset() of an environment must depend on "
                "the row alone, and the chat template must not rewrite past turns. Or use GRPO, RLOO or PPO, which "
                "learn from each completion on its own context."
            )
