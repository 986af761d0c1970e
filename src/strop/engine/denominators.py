"""What an optimizer step divides by beside a method's own counts: tokens, and those that a router is balanced over.

A load-balancing loss is a mean over tokens, taken of each micro-batch and weighted by the tokens in it. They are
counted as in the padded layout, a prompt once for each of its completions: so the weights add up to 1 however trees are
cut, and whatever a method leaves out of the pass with gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from strop.records import Counts, Example

if TYPE_CHECKING:
    from strop.engine.step_trainer import StepTrainer


def routed_tokens(examples: Sequence[Example]) -> float:
    """Tokens of some trees, a prompt counted once for each of its completions."""
    return float(sum(len(e.prompt_ids) + len(ids) for e in examples for ids in e.completions))


def step_counts(trainer: StepTrainer, examples: list[Example]) -> Counts:
    """The counts of a method, `num_tokens`, and `routed_tokens` of the trees that are computed with gradient."""
    routed = trainer.gradient_rows(trainer.rows_worth_computing(examples)) if trainer.router_coef else ()
    tokens = {"num_tokens": float(sum(e.num_tokens for e in examples)), "routed_tokens": routed_tokens(routed)}
    return {**tokens, **trainer.counts(examples)}
