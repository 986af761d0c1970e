"""Online DPO: sample, let a reward or a judge choose, learn from the pair."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch

from strop.losses import dpo_loss, mean_of
from strop.records import Batch, Example, Extreme, LossOutput, Mean, Scores, Term
from strop.trainers.groups import Group, replies
from strop.trainers.online import OnlineTrainer
from strop.trainers.online_config import OnlineConfig
from strop.trainers.opponents import PairVerdicts, check_judge, check_opponent, is_judge, judged
from strop.trainers.pairs import pair_metrics
from strop.trainers.schema import Range, config
from strop.trainers.step import StepContext, tree_field


@config
class OnlinePairConfig(OnlineConfig):
    """Settings of methods that make pairs of sampled completions."""

    learning_rate: Annotated[float, Range(min=0)] = 5e-7
    """Peak learning rate of AdamW."""
    max_completion_length: Annotated[int, Range(min=1)] | None = 64
    """Most tokens of a completion."""
    temperature: Annotated[float, Range(min=0, open_min=True)] = 0.9
    """Temperature of sampling, and of the log-probs in the loss."""
    beta: Annotated[float, Range(min=0, open_min=True)] | list[float] = 0.1
    """Strength of the pull to the reference; a list has one value per epoch, the last one stays."""
    loss_type: Literal["sigmoid", "ipo"] = "sigmoid"
    """Loss of the pair (ipo of summed log-ratios)."""
    reward_model_path: str | None = None
    """Reward model by id or folder, for a trainer that is given no reward_funcs."""

    def contradictions(self) -> list[str]:
        problems = super().contradictions()
        if self.num_iterations != 1:
            problems.append("num_iterations: pairs are used once here; set it to 1.")
        return problems


@config
class OnlineDPOConfig(OnlinePairConfig):
    """Settings of `OnlineDPOTrainer`."""

    num_generations: Annotated[int, Range(min=2)] = 2
    """Completions sampled for each prompt; the best and the worst make the pair."""


class OnlinePairTrainer(OnlineTrainer):
    """Trees are prompts with two sampled completions; `beta` may follow the epochs.

    `per_device_train_batch_size` counts prompts, each of which makes a pair. With a judge the pair is judged as a pair.
    """

    batch_counts = "prompts"
    has_opponent: ClassVar[bool] = False  # the second completion comes from a mixture with the reference

    @property
    def uses_reference(self) -> bool:  # type: ignore[override]
        return True

    def __init__(
        self, model: Any = None, ref_model: Any = None, reward_funcs: Any = None, args: Any = None, **kwargs: Any
    ) -> None:
        super().__init__(model, reward_funcs, args, ref_model=ref_model, **kwargs)

    def after_init(self) -> None:
        source, tokenizers = self._reward_source
        if self.has_opponent:
            check_opponent(self)
        alone = source[0] if isinstance(source, (list, tuple)) and len(source) == 1 else source
        self.has_judge = is_judge(alone)
        if self.has_judge:
            check_judge(self.args)
            self._reward_source = (PairVerdicts(alone), tokenizers)
        super().after_init()

    def score_groups(self, groups: list[Group], mode: str) -> None:
        """Rewards of every completion; with a judge the share of its duels within the group that it won."""
        if not self.has_judge or not groups:
            super().score_groups(groups, mode)
            return
        assert self.rewards is not None
        duels = [pair for group in groups for pair in combinations(replies(self.processing_class, group), 2)]
        sizes = [math.comb(len(group.completions), 2) for group in groups]
        prompts = [group.prompt for group, size in zip(groups, sizes, strict=True) for _ in range(size)]
        table = self.rewards.score(prompts, duels)
        for group, verdicts in zip(groups, np.split(table.values[0], np.cumsum(sizes)[:-1]), strict=True):
            group.reward_names = table.names
            judged(group, verdicts.tolist())
        self._metrics[mode].add(table.log_metrics())

    def count_dropped(self, groups: list[Group], trees: list[Example], training: bool) -> None:
        """`pairs/dropped_ratio`: the share of groups that made no pair."""
        dropped = Mean(float(len(groups) - len(trees)), float(len(groups)))
        self._metrics["train" if training else "eval"].add({"pairs/dropped_ratio": dropped})

    @property
    def beta(self) -> float:
        """The coefficient of the current epoch."""
        return at_epoch(self.args.beta, self.state.epoch)


class OnlineDPOTrainer(OnlinePairTrainer):
    """DPO on pairs sampled from the current policy: the best and the worst of `num_generations` completions.

    `reward_funcs` are functions, models, ids or judges. Ties and identical completions carry no preference: they are
    left out and counted (`pairs/dropped_ratio`). Completions without an end lose `missing_eos_penalty`.
    Rows: `prompt`. Source: arXiv 2402.04792.
    """

    config_class = OnlineDPOConfig

    def make_trees(self, groups: list[Group], training: bool) -> list[Example]:
        trees = []
        for index, group in enumerate(groups):
            pair = best_and_worst(group)
            if pair is None:
                continue
            assert group.rewards is not None
            extras = {
                "prompt_index": index,
                "scores": [float(group.rewards[i]) for i in pair],
                "ended": [float(group.finish_reasons[i] == "stop") for i in pair],
            }
            trees.append(group.tree(pair, drop_truncated=self.args.mask_truncated_completions, extras=extras))
        self.count_dropped(groups, trees, training)
        return trees

    def loss(self, scores: Scores, batch: Batch, step: StepContext) -> LossOutput:
        assert step.ref is not None
        policy, ref = scores.sum().view(-1, 2), step.ref.sum().view(-1, 2)  # (B, 2) each
        columns = (policy[:, 0], policy[:, 1], ref[:, 0], ref[:, 1])
        values = dpo_loss(*columns, beta=self.beta, loss_type=self.args.loss_type)
        rewards = self.beta * (policy - ref).detach()
        metrics = pair_metrics(scores, rewards, policy.detach())
        metrics |= objective_metrics(scores, policy, ref, self.beta)
        ranked = tree_field(batch, "scores", dtype=torch.float64)  # (B, 2)
        metrics["objective/scores"] = mean_of(ranked)
        metrics["objective/scores_margin"] = mean_of(ranked[:, 0] - ranked[:, 1])
        metrics["objective/rlhf_reward"] = mean_of(ranked.to(policy) - self.beta * (policy - ref))
        metrics["val/contain_eos_token"] = mean_of(tree_field(batch, "ended", dtype=torch.float64))
        return LossOutput([Term(values, "trees")], metrics)


def at_epoch(value: float | list[float], epoch: float | None) -> float:
    """A setting that may have one value per epoch, the last of which stays."""
    return value[min(int(epoch or 0), len(value) - 1)] if isinstance(value, (list, tuple)) else value


def best_and_worst(group: Group) -> tuple[int, int] | None:
    """Indices of the best and the worst rewarded completion; None for a tie or for identical completions."""
    assert group.rewards is not None
    known = [i for i in range(len(group.completions)) if not group.rewards[i].isnan()]
    if len(known) < 2:
        return None
    best, worst = max(known, key=lambda i: float(group.rewards[i])), min(known, key=lambda i: float(group.rewards[i]))  # type: ignore[index]
    same = (
        float(group.rewards[best]) == float(group.rewards[worst]) or group.completions[best] == group.completions[worst]
    )
    return None if same else (best, worst)


def objective_metrics(
    scores: Scores, policy: torch.Tensor, ref: torch.Tensor, beta: float
) -> dict[str, Mean | Extreme]:
    """KL of whole completions, their surprise as an entropy estimate (nats), the KL as a penalty, and beta."""
    kl = (policy - ref).detach()
    return {
        "objective/kl": mean_of(kl),
        "objective/entropy": mean_of(-policy.detach()),
        "objective/non_score_reward": mean_of(-beta * kl),
        "beta": Mean(beta, 1.0),
    }
