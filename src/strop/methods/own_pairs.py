"""What the methods share that make pairs of their own samples: settings, judges, a beta that follows the epochs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch

from strop.engine.parts import Facts
from strop.losses import mean_of
from strop.metric import COMPLETIONS, REWARD, Entry
from strop.online.groups import Group, replies
from strop.online.opponents import PairVerdicts, check_judge, check_opponent, drawing_against, judged, of_policy
from strop.online.sampler_check import sampler_gap
from strop.online.sampling import Drawn, Load
from strop.online.trainer import OnlineTrainer
from strop.records import Batch, Example, Extreme, Mean, Scores
from strop.rewards.judges import as_judge
from strop.rollout import SamplingParams
from strop.settings.online import OnlineConfig
from strop.settings.schema import OneOrMore, Range, config


@config
class OnlinePairConfig(OnlineConfig):
    """Settings of methods that make pairs of sampled completions."""

    headline: ClassVar[tuple[str, ...]] = ("reward", "rewards/accuracies", "objective/kl")
    unused: ClassVar[dict[str, str]] = {
        **OnlineConfig.unused,
        "advantage_level": "Whole completions are compared with each other; GRPO and RLOO give credit by turn.",
    }

    learning_rate: Annotated[float, Range(min=0)] = 5e-7
    """Peak learning rate of AdamW."""
    max_completion_length: Annotated[int, Range(min=1)] | None = 64
    """Most tokens of a completion."""
    temperature: Annotated[float, Range(min=0, open_min=True)] = 0.9
    """Temperature of sampling, and of the log-probs in the loss."""
    beta: Annotated[list[float], Range(min=0, open_min=True), OneOrMore()] = 0.1
    """Strength of the pull to the reference; a list has one value per epoch, the last one stays."""
    loss_type: Literal["sigmoid", "ipo"] = "sigmoid"
    """Loss of the pair (ipo of summed log-ratios)."""
    reward_model_path: str | None = None
    """Reward model by id or folder, for a trainer that is given no reward_funcs."""

    def __post_init__(self) -> None:
        if isinstance(self.beta, (list, tuple)) and len(self.beta) == 1:
            self.beta = self.beta[0]
        super().__post_init__()

    def contradictions(self) -> list[str]:
        problems = super().contradictions()
        if self.num_iterations != 1:
            problems.append("num_iterations: pairs are used once here; set it to 1.")
        return problems


class OnlinePairTrainer(OnlineTrainer):
    """Trees are prompts with two sampled completions; `beta` may follow the epochs.

    `per_device_train_batch_size` counts prompts, each of which makes a pair. With a judge the pair is judged as a pair.
    """

    glossary: ClassVar[tuple[Entry, ...]] = (
        Entry(
            "pairs/dropped_ratio", REWARD,
            "Share of prompts left out because their completions were alike or equally good.", "share", "prompt",
            high=0.5,
            advice="High: completions hardly differ. Raise the temperature or num_generations, or use a finer reward.",
        ),
        Entry(
            "pairs/apart_ratio", REWARD,
            "Share of completions that lie on a context of their own, and were compared with none.", "share",
            "completion", high=0.1,
            advice="Let rollout_func, or reset() of the environment, give all completions of a prompt one context.",
        ),
        Entry("objective/scores_margin", REWARD, "Higher score minus lower score of a pair.", "reward", "pair"),
        Entry(
            "objective/model_scores", REWARD, "Score of the policy's completions.", "reward", "completion",
            healthy="rises",
        ),
        Entry(
            "objective/ref_scores", REWARD, "Score of the reference's completions.", "reward", "completion",
            healthy="flat",
        ),
        Entry(
            "val/model_contain_eos_token", COMPLETIONS, "Share of the policy's completions that ended by themselves.",
            "share", "completion", low=0.8, high=1,
        ),
        Entry(
            "val/ref_contain_eos_token", COMPLETIONS, "Share of the reference's completions that ended by themselves.",
            "share", "completion", low=0.8, high=1,
        ),
    )  # fmt: skip
    batch_counts = "prompts"
    tree_completions = 2
    has_opponent: ClassVar[bool] = False  # the second completion comes from a mixture with the reference
    verdict_metric: ClassVar[str] = "loss"  # what the best checkpoint goes by where a judge gives verdicts

    def __init__(
        self, model: Any = None, ref_model: Any = None, reward_funcs: Any = None, args: Any = None, **kwargs: Any
    ) -> None:
        super().__init__(model, reward_funcs, args, ref_model=ref_model, **kwargs)

    @classmethod
    def facts(cls, args: Any, given: Mapping[str, Any]) -> Facts:
        return replace(super().facts(args, given), uses_reference=True)

    def after_init(self) -> None:
        if self.has_opponent:
            check_opponent(self)
        super().after_init()

    def reward(self) -> Any:
        """As it was given; of a judge, its verdicts on pairs."""
        source = super().reward()
        alone = source[0] if isinstance(source, (list, tuple)) and len(source) == 1 else source
        judge = as_judge(alone)
        self.has_judge = judge is not None
        if judge is None:
            return source
        check_judge(self.args)
        if self.args.metric_for_best_model in ("reward", "eval_reward"):
            self.args.go_by(self.verdict_metric)
            self.say(
                f"The mean of a judge's verdicts is 1/2 always; the best checkpoint goes by {self.verdict_metric}."
            )
        return PairVerdicts(judge)

    @property
    def opponent_weight(self) -> float:
        """Weight of the reference in the mixture that opponents are drawn from."""
        return 1.0

    def drawing(self, prompts: Sequence[Example], n: int, params: SamplingParams, load: Load) -> Callable[[], Drawn]:
        if not self.has_opponent:
            return super().drawing(prompts, n, params, load)
        own = super().drawing(prompts, 1, params, load)
        return drawing_against(self, own, prompts, params, self.opponent_weight)

    def compare_sampler(self, groups: list[Group]) -> None:
        super().compare_sampler([of_policy(group) for group in groups])

    def ask(self, groups: list[Group], state: Any) -> dict[str, Mean | Extreme]:
        """Rewards of every completion; with a judge the share of its duels within the group that it won."""
        if not self.has_judge:
            return super().ask(groups, state)
        assert self.rewards is not None
        duels = [pair for group in groups for pair in combinations(replies(self.processing_class, group), 2)]
        sizes = [math.comb(len(group.completions), 2) for group in groups]
        prompts = [group.question for group, size in zip(groups, sizes, strict=True) for _ in range(size)]
        table = self.rewards.score(prompts, duels)
        for group, verdicts in zip(groups, np.split(table.values[0], np.cumsum(sizes)[:-1]), strict=True):
            group.reward_names = table.names
            judged(group, verdicts.tolist())
        return table.log_metrics()

    def sampler_gap(self, scores: Scores, batch: Batch) -> dict[str, Mean | Extreme]:
        """How far the sampler's log-probs are from the policy's, when a round is learned from for the first time."""
        assert scores.logps is not None
        return sampler_gap(scores.logps, batch) if self.sizes.steps == 1 else {}

    def count_dropped(self, groups: list[Group], trees: list[Example], training: bool) -> None:
        """`pairs/dropped_ratio`: the share of groups that made no pair."""
        dropped = Mean(float(len(groups) - len(trees)), float(len(groups)))
        self._metrics["train" if training else "eval"].add({"pairs/dropped_ratio": dropped})

    @property
    def beta(self) -> float:
        """The coefficient of the current epoch."""
        return at_epoch(self.args.beta, self.state.epoch)


def at_epoch(value: float | list[float], epoch: float | None) -> float:
    """A setting that may have one value per epoch, the last of which stays."""
    return value[min(int(epoch or 0), len(value) - 1)] if isinstance(value, (list, tuple)) else value


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
