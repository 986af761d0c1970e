"""Reward: train a model that scores completions, from preference pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar

import torch

from strop.data import DatasetKind
from strop.engine import rows
from strop.engine.parts import Facts
from strop.engine.step import tree_field
from strop.engine.trainer import BaseTrainer
from strop.losses import reward_loss
from strop.metric import LN2, LOSS, REWARD, Entry
from strop.records import Batch, Extreme, LossOutput, Mean, Scores, StepContext, Term, Want
from strop.settings.config import SCORES_ONLY, TrainerConfig
from strop.settings.schema import Range, config


@config
class RewardConfig(TrainerConfig):
    """Settings of `RewardTrainer`."""

    unused: ClassVar[dict[str, str]] = {
        **TrainerConfig.unused,
        **SCORES_ONLY,
        "truncation_mode": "Too long pairs are left out: a cut end would move the token that is scored; remove it.",
    }

    learning_rate: Annotated[float, Range(min=0)] = 1e-4
    max_length: Annotated[int, Range(min=2)] | None = 1024
    """Pairs with a longer side are left out and counted: a cut end would move the token that is scored."""
    center_rewards_coefficient: Annotated[float, Range(min=0)] | None = None
    """Weight of (r_w + r_l)^2, which keeps rewards near zero (arXiv 2312.09244; 0.01 is recommended). None: off."""


class RewardTrainer(BaseTrainer):
    """Bradley-Terry reward model: L = mean of softplus(-(r_w - r_l - m)) + c (r_w + r_l)^2 over pairs.

    r is a scalar head on the last token of prompt + completion, found by length and never by comparing ids with the
    padding id. Rows end with EOS, and the score is read there: give other tools the text with it. m is the row's
    `margin` column, 0 where there is none. Rows: `chosen`, `rejected`, optional `prompt`.
    Sources: arXiv 2203.02155 Eq. 1; margin arXiv 2307.09288 Eq. 2; centring arXiv 2312.09244 Eq. 2.
    """

    config_class = RewardConfig
    glossary: ClassVar[tuple[Entry, ...]] = (
        Entry(
            "loss", LOSS, "Bradley-Terry loss: how badly chosen is ranked above rejected.", "nats", "pair", high=LN2,
            healthy=f"ln 2 = {LN2:.3f} is guessing",
            advice=(
                "Stuck at ln 2: check that chosen and rejected differ at their ends and that the learning rate is not "
                "too low."
            ),
        ),
        Entry(
            "accuracy", REWARD, "Share of pairs ranked right; ties count as wrong.", "share", "pair", low=0.5, high=1,
            healthy="human labels agree with each other in 0.65 to 0.75",
            advice="1.0 at once: chosen and rejected differ in something trivial.",
        ),
        Entry(
            "margin", REWARD, "Chosen reward minus rejected reward.", "reward", "pair", low=0, healthy="rises above 0",
        ),
        Entry(
            "mean_reward", REWARD, "Mean reward over chosen and rejected.", "reward", "completion", healthy="near 0",
            advice="Drifts away: set center_rewards_coefficient=0.01.",
        ),
        Entry("min_reward", REWARD, "Lowest reward of either side.", "reward", "batch"),
        Entry("max_reward", REWARD, "Highest reward of either side.", "reward", "batch"),
    )  # fmt: skip
    dataset_kind = DatasetKind.PREFERENCE
    tree_completions = 2
    task = "score"

    @classmethod
    def facts(cls, args: Any, given: Mapping[str, Any]) -> Facts:
        return replace(super().facts(args, given), tokenize=rows.tokenize_options(args, filter_overlong=True))

    def want(self, log: bool) -> Want:
        return Want.SCORE

    def predictions(self, scores: Scores, batch: Batch) -> torch.Tensor:
        """Rewards of chosen and rejected, (B, 2)."""
        return scores.scores.view(-1, 2)

    def loss(self, scores: Scores, batch: Batch, step: StepContext) -> LossOutput:
        chosen, rejected = scores.scores.view(-1, 2).unbind(1)  # (B,) each
        margin = None
        if any("margin" in example.extras for example in batch.examples):
            for example in batch.examples:
                example.extras.setdefault("margin", 0.0)
            margin = tree_field(batch, "margin", dtype=chosen.dtype)  # (B,)
        values = reward_loss(chosen, rejected, margin=margin, center_coefficient=self.args.center_rewards_coefficient)
        return LossOutput([Term(values, "trees")], reward_metrics(chosen.detach(), rejected.detach()))


def reward_metrics(chosen: torch.Tensor, rejected: torch.Tensor) -> dict[str, Mean | Extreme]:
    """Share of pairs ranked right (ties count as wrong), mean margin, and mean, least and greatest reward over
    both sides."""
    pairs = chosen.numel()
    return {
        "accuracy": Mean((chosen > rejected).float().sum(), pairs),
        "margin": Mean((chosen - rejected).sum(), pairs),
        "mean_reward": Mean((chosen + rejected).sum(), 2 * pairs),
        "min_reward": Extreme(torch.minimum(chosen, rejected).min(), largest=False),
        "max_reward": Extreme(torch.maximum(chosen, rejected).max()),
    }
