"""What the methods share that make pairs of their own samples: settings, opponents, judges, a beta by epochs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch

from strop.engine.parts import Facts
from strop.errors import ConfigError
from strop.losses import mean_of
from strop.metric import COMPLETIONS, REWARD, Entry
from strop.online.groups import Group, replies
from strop.online.sampler_check import sampler_gap
from strop.online.sampling import Drawn, Load, of_opponent
from strop.online.trainer import OnlineTrainer
from strop.records import Batch, Example, Extreme, Mean, Sampled, Scores
from strop.rewards.judges import as_judge
from strop.rollout import Mixture, SamplingParams
from strop.rollout.generator import help_others
from strop.settings.online import OnlineConfig
from strop.settings.schema import OneOrMore, Range, config

OPPONENT_UNUSED = {
    **dict.fromkeys(
        ("use_vllm", *(name for name in OnlineConfig.needs if name.startswith("vllm_"))),
        "The opponent is sampled from two models at once, which vLLM cannot do; remove it.",
    ),
    **dict.fromkeys(("ray_workers", "ray_timeout"), "The opponent is sampled from two models here; remove it."),
    **dict.fromkeys(
        ("max_tool_calling_iterations", "tool_timeout", "tools_at_once", "environment_isolation", "past_turns"),
        "The opponent has no tools and no environment; use OnlineDPOTrainer.",
    ),
}
"""Settings that have no effect where the policy meets an opponent."""


@config
class OnlinePairConfig(OnlineConfig):
    """Settings of methods that make pairs of sampled completions."""

    headline: ClassVar[tuple[str, ...]] = ("reward", "rewards/accuracies", "objective/kl")
    unused: ClassVar[dict[str, str]] = {
        **OnlineConfig.unused,
        "advantage_level": "Whole completions are compared with each other; GRPO and RLOO give credit by turn.",
    }

    learning_rate: Annotated[float, Range(min=0)] = 5e-7
    max_completion_length: Annotated[int, Range(min=1)] | None = 64
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
            self.check_opponent()
        super().after_init()

    def check_opponent(self) -> None:
        name, problems = type(self).__name__.removeprefix("Online"), []
        if self.args.engine in ("vllm", "ray"):
            problems.append(
                f"engine={self.args.engine!r}: {name} samples its opponent from two models at once; take 'auto'."
            )
        if self.shards is not None and not hasattr(self.reference, "model"):
            problems.append(
                f"FSDP: {name} samples its opponent from the policy without its adapter, whose weights are cut; train "
                "all weights, or use ZeRO-2."
            )
        if self.turns_wanted:
            problems.append(
                f"tools, environments and rollout functions: the opponent of {name} has none; use OnlineDPOTrainer."
            )
        if problems:
            raise ConfigError.collect(f"{name} cannot be made from these arguments:", problems)

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
        """Beside each completion of the policy one of its opponent, where it has one."""
        if not self.has_opponent:
            return super().drawing(prompts, n, params, load)
        own, engine, other = super().drawing(prompts, 1, params, load), self.generator, of_opponent(params)
        with self.reference.active() as reference:
            mixture = Mixture(reference, self.opponent_weight, context=self.reference.active)

        def draw() -> Drawn:
            groups, counted = own()
            if groups:
                met = engine.generate([prompt.prompt_ids for prompt in prompts], 1, other, mixture=mixture)
                lists = zip(groups, met.completions, met.sampler_logps, met.finish_reasons, strict=True)
                for group, completions, sampler_logps, reasons in lists:
                    group.completions = [group.completions[0], completions[0]]
                    group.sampler_logps = [group.sampler_logps[0], sampler_logps[0]]
                    group.finish_reasons = [group.finish_reasons[0], reasons[0]]
                    group.own = 1
            help_others(engine)
            return groups, counted

        return draw

    def compare_sampler(self, groups: list[Group]) -> None:
        """Of the policy's own completions alone, of those that were sampled."""
        names, own = ("completions", "sampler_logps", "finish_reasons"), []
        for group in groups:
            own.append(replace(group, **{name: getattr(group, name)[: group.own] for name in names}))
        super().compare_sampler(own)

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
        return sampler_gap(scores.logps, batch) if self.sizes.steps == 1 else {}

    def pair_tree(self, group: Group, place: int, pair: Sequence[int], **known: Any) -> Example:
        """Two completions of a group as a tree, with the rewards and ends of both sides, and what else is `known`."""
        sampled = Sampled(
            place,
            scores=group.rewards[list(pair)].tolist(),
            ended=[float(group.finish_reasons[i] == "stop") for i in pair],
            version=group.version,
            **{"sampler_logps": [group.sampler_logps[i] for i in pair], **known},
        )
        return group.tree(pair, drop_truncated=self.args.mask_truncated_completions, sampled=sampled)

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


class PairVerdicts:
    """A judge as a reward of pairs: P(the first completion wins) for each, None where there is no verdict."""

    runs_models = True

    def __init__(self, judge: Any) -> None:
        self.judge = judge
        self.reward_name = getattr(judge, "name", None) or type(judge).__name__

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **kwargs: Any) -> list[float | None]:
        return self.judge.probabilities(prompts, completions)


def check_judge(args: Any) -> None:
    """Refuse settings that make numbers of what a judge says; a verdict is none."""
    advice = {
        "missing_eos_penalty": "A judge sees the text; let it judge the missing end, or give rewards instead.",
        "reward_weights": "One judge decides alone; remove it.",
    }
    problems = [f"{name}: {text}" for name, text in advice.items() if getattr(args, name)]
    if args.reward_on_error == "penalize":
        problems.append(
            "reward_on_error='penalize': a failed verdict is no loss of either side; use 'skip' or 'raise'."
        )
    if problems:
        raise ConfigError.collect("These settings do not go with a judge:", problems)


def judged(group: Group, verdicts: Sequence[float]) -> None:
    """Write the share of its duels that each completion won as its reward; NaN where it had no verdict.

    `verdicts` are P(i beats j), NaN without a verdict, of all pairs i < j in the order of `combinations`. Of two
    completions the first one's reward is P and the second one's 1 - P.
    """
    won: list[list[float]] = [[] for _ in group.completions]
    for (i, j), probability in zip(combinations(range(len(won)), 2), verdicts, strict=True):
        if not math.isnan(probability):
            won[i].append(probability)
            won[j].append(1 - probability)
    shares = [sum(part) / len(part) if part else math.nan for part in won]
    group.rewards = torch.tensor(shares, dtype=torch.float64)
    group.values = group.rewards[:, None]


def preferences(groups: Sequence[Group], *, judge: bool) -> list[float | None]:
    """P(first completion > second) of each group of two; None where there is no verdict.

    A judge's own probability, or sigmoid(R1 - R2) of rewards.
    """
    first = [g.rewards[0] if judge else (g.rewards[0] - g.rewards[1]).sigmoid() for g in groups]
    return [None if g.rewards.isnan().any() else float(p) for g, p in zip(groups, first, strict=True)]
