"""Rollouts that do not depend on the policy, the batch or the process, so that online methods can be compared.

Sampling differs between batch shapes and processes by design (a seed each). A check that cuts the same prompts in
different ways needs the same completions every time: `fix_rollouts(trainer)` puts an engine in that draws them from
the prompt alone.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from strop.records import Rollout

if TYPE_CHECKING:
    from strop.engine.trainer import BaseTrainer


class FixedGenerator:
    """A rollout engine whose completions are a function of prompt, sample number and player.

    Args:
        vocab_size: ids are drawn from 5 on, above the special tokens of the toy tokenizers.
        eos_id: ends most completions; one in four stops at the limit instead.
        longest: most tokens of a completion.
    """

    name = "fixed"
    reason = "a check needs the same completions every time"

    def __init__(self, vocab_size: int, eos_id: int, *, longest: int = 6) -> None:
        self.vocab_size, self.eos_id, self.longest = vocab_size, eos_id, longest

    def generate(self, prompts: list[list[int]], n: int, sampling: Any, *, mixture: Any = None) -> Rollout:
        player = "policy" if mixture is None else "opponent"
        drawn = [[self._completion(f"{prompt} {index} {player}") for index in range(n)] for prompt in prompts]
        return Rollout(
            prompts,
            [[ids for ids, _ in row] for row in drawn],
            [[[-1.0] * len(ids) for ids, _ in row] for row in drawn],
            [[reason for _, reason in row] for row in drawn],
        )

    def _completion(self, key: str) -> tuple[list[int], str]:
        rng = random.Random(key)
        ids = [rng.randrange(5, self.vocab_size) for _ in range(rng.randint(1, self.longest))]
        if rng.random() < 0.25:
            return ids, "length"
        return [*ids[:-1], self.eos_id], "stop"

    def sync(self, model: Any = None) -> None:
        """Nothing to bring up to date."""

    def close(self) -> None:
        """Nothing to give back."""


def fix_rollouts(trainer: BaseTrainer, **options: Any) -> Any:
    """Give an online trainer completions that depend on the prompt alone; others are left as they are."""
    if hasattr(trainer, "_generator"):
        tokenizer = trainer.processing_class
        trainer._generator = FixedGenerator(len(tokenizer), tokenizer.eos_token_id, **options)
        trainer._teacher_generator = trainer._generator
    return trainer
