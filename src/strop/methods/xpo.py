"""XPO: exploratory preference optimisation. Online with a reward; on given pairs, the exponential loss."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch

from strop.data import DatasetKind
from strop.engine import rows
from strop.engine.arguments import resolve_config, take_settings
from strop.engine.parts import Facts
from strop.engine.step import tree_field
from strop.engine.trainer import BaseTrainer
from strop.errors import ConfigError
from strop.losses import dpo_loss, exponential_metrics, mean_of, xpo_loss
from strop.methods.own_pairs import (
    OPPONENT_UNUSED,
    OnlinePairConfig,
    OnlinePairTrainer,
    at_epoch,
    objective_metrics,
    preferences,
)
from strop.methods.pairs import pair_metrics
from strop.metric import LN2, LOSS, Entry
from strop.online.groups import Group
from strop.records import Batch, Example, LossOutput, Mean, Scores, StepContext, Term, Want
from strop.settings.config import ReferenceConfig
from strop.settings.schema import OneOrMore, Range, config

OF_GIVEN_PAIRS = ("truncation_mode", "precompute_ref_log_probs", "precompute_ref_batch_size")
"""Settings that act on pairs that are given, and not on those that are sampled."""


@config
class XPOConfig(OnlinePairConfig):
    """Settings of `XPOTrainer`."""

    headline: ClassVar[tuple[str, ...]] = ("reward", "objective/ref_scores")
    unused: ClassVar[dict[str, str]] = {
        **{name: why for name, why in OnlinePairConfig.unused.items() if name not in OF_GIVEN_PAIRS},
        **OPPONENT_UNUSED,
        "num_generations_eval": "Each prompt has one completion of the policy and one of the reference.",
    }

    mode: Literal["auto", "online", "offline_exponential"] = "auto"
    """auto: online where a reward or judge is given, else the exponential loss on preference pairs."""
    loss_type: Literal["auto", "sigmoid", "ipo", "exponential"] = "auto"
    """Online: sigmoid or ipo. Offline: exponential. auto: the first that fits the mode."""
    alpha: Annotated[list[float], Range(min=0), OneOrMore()] = 1e-5
    """Weight of the exploration bonus (online); it must be tiny. A list: one per epoch."""
    num_generations: Annotated[int, Range(min=1, max=1)] = 1
    """Completions of the policy per prompt; each meets one of the reference."""

    def why_in_order(self) -> list[str]:
        moves = "sync_ref_model=True moves the reference, whose completions are sampled ahead from a copy; remove one."
        return [*super().why_in_order(), *([moves] if self.sync_ref_model else [])]


WITH_SAMPLING = ("reward_processing_classes", "tools", "environment_factory", "rollout_func")
"""Arguments of the constructor that only the online mode reads."""


def settle_mode(args: XPOConfig, *, offline: bool) -> None:
    """Write the mode and the loss that `auto` stands for; refuse settings that the mode does not read."""
    if args.mode == "online" and offline:
        raise ConfigError(
            "XPOTrainer with mode='online' needs a reward: pass reward_funcs=, a function, a model, an id, or a judge."
        )
    if args.mode == "offline_exponential" and not offline:
        raise ConfigError(
            "XPOTrainer with mode='offline_exponential' learns from pairs and asks no reward; remove reward_funcs."
        )
    if offline and args.loss_type not in ("auto", "exponential"):
        raise ConfigError(
            f"loss_type={args.loss_type!r} on given pairs is a loss of DPOTrainer; offline XPO is 'exponential'."
        )
    if offline and (idle := settings_of_sampling(args)):
        raise ConfigError(
            "XPOTrainer was given no reward, so it learns from given pairs and samples nothing; these settings "
            f"have no effect: {', '.join(idle)}. Pass reward_funcs= (or judge=), or remove them."
        )
    if not offline and (idle := [name for name in OF_GIVEN_PAIRS if getattr(args, name) != getattr(XPOConfig, name)]):
        advice = "\n".join(f"  - {name}: {OnlinePairConfig.unused[name]}" for name in idle)
        raise ConfigError(f"XPOTrainer was given a reward, so it samples its pairs. No effect have:\n{advice}")
    if not offline and args.loss_type == "exponential":
        raise ConfigError(
            f"loss_type={args.loss_type!r} is for pairs that are given; online XPO knows 'sigmoid' and 'ipo'."
        )
    if offline and args.metric_for_best_model == args.best_metric:
        args.go_by("loss")
    args.mode = "offline_exponential" if offline else "online"
    if args.loss_type == "auto":
        args.loss_type = "exponential" if offline else "sigmoid"


def settings_of_sampling(args: XPOConfig) -> list[str]:
    """Settings that only the online mode reads, where they differ from their defaults."""
    shared = {f.name for f in dataclasses.fields(ReferenceConfig)} | {"beta", "mode", "loss_type"}
    return [f.name for f in dataclasses.fields(args) if f.name not in shared and getattr(args, f.name) != f.default]


class XPOTrainer(OnlinePairTrainer):
    """Exploratory preference optimisation.

    With a reward or judge (online): y from the policy, y~ from the reference, L = DPO(y, y~ by preference) +
    alpha log pi(y~); the bonus lowers what the reference would say and so makes the policy explore. Rows: `prompt`.
    Without one (offline): DPO's `exponential` loss, L = e^(-beta (u_w - u_l)), on preference pairs; rows: `prompt`,
    `chosen`, `rejected`.
    Source: arXiv 2405.21046 Algorithm 1; offline: the exponential member of GPO, arXiv 2402.05749.
    Differs from the paper: each step learns from its own pairs, not from all pairs so far. With `max_staleness` y is of
    an earlier policy, as most of the paper's pairs are, and needs no weight; y~ is of the reference, which does not
    move.
    """

    config_class = XPOConfig
    glossary: ClassVar[tuple[Entry, ...]] = (
        Entry("loss/dpo", LOSS, "Preference part of XPO's loss.", "nats", "pair", high=LN2, healthy="starts near ln 2"),
        Entry(
            "loss/xpo", LOSS, "Exploration bonus: alpha times the log-probability of the reference's sample.", "nats",
            "pair", advice="Far larger than loss/dpo: lower alpha.",
        ),
        Entry("alpha", LOSS, "Weight of XPO's exploration bonus.", "none", "step"),
    )  # fmt: skip
    has_opponent = True
    verdict_metric = "objective/model_scores"
    needs_reward = False  # without one, pairs are given

    def __init__(
        self,
        model: Any = None,
        ref_model: Any = None,
        reward_funcs: Any = None,
        args: XPOConfig | None = None,
        **kwargs: Any,
    ) -> None:
        if args is None and isinstance(reward_funcs, XPOConfig):  # XPOTrainer(model, ref_model, args)
            reward_funcs, args = None, reward_funcs
        args = copy.copy(resolve_config(XPOConfig, args, take_settings(XPOConfig, args, kwargs)))
        sources = (reward_funcs, kwargs.get("reward_model"), kwargs.get("judge"), args.reward_model_path)
        offline = not any(source is not None for source in sources)
        settle_mode(args, offline=offline)
        unused = [name for name in WITH_SAMPLING if offline and kwargs.get(name) is not None]
        if unused:
            raise ConfigError(f"XPOTrainer was given no reward, so it samples nothing; remove {', '.join(unused)}.")
        super().__init__(model, ref_model, reward_funcs, args, **kwargs)

    @property
    def alpha(self) -> float:
        """The bonus weight of the current epoch."""
        return at_epoch(self.args.alpha, self.state.epoch)

    # ---- given pairs: rows are trees already ------------------------------------------------------------------

    @classmethod
    def facts(cls, args: Any, given: Mapping[str, Any]) -> Facts:
        facts = super().facts(args, given)
        if args.mode == "online":
            return facts
        options = rows.tokenize_options(args)
        return dataclasses.replace(facts, dataset_kind=DatasetKind.PREFERENCE, tokenize=options)

    @property
    def offline(self) -> bool:
        """Whether pairs are given, and not sampled."""
        return self.args.mode == "offline_exponential"

    @property
    def samples_reference(self) -> bool:  # type: ignore[override]
        return not self.offline

    @property
    def remembers_reference(self) -> bool:  # type: ignore[override]
        return self.offline

    def want(self, log: bool) -> Want:
        return BaseTrainer.want(self, log) if self.offline else super().want(log)

    def score_options(self) -> dict[str, Any]:
        return {**super().score_options(), **({"temperature": 1.0} if self.offline else {})}

    def labels(self, batch: Batch) -> list[int] | None:
        return [0] * len(batch.examples) if self.offline else super().labels(batch)

    def prepare_step(self, examples: list[Example]) -> list[Example]:
        return examples if self.offline else super().prepare_step(examples)

    def prepare_evaluation(self, examples: list[Example]) -> list[Example]:
        return examples if self.offline else super().prepare_evaluation(examples)

    def prepare_stand_in(self, example: Example) -> Example:
        return example if self.offline else super().prepare_stand_in(example)

    # ---- sampled pairs ----------------------------------------------------------------------------------------

    def make_trees(self, groups: list[Group], training: bool) -> list[Example]:
        trees = []
        probabilities = preferences(groups, judge=self.has_judge)
        for index, (group, probability) in enumerate(zip(groups, probabilities, strict=True)):
            if probability is None or probability == 0.5 or group.completions[0] == group.completions[1]:
                continue
            told = [group.sampler_logps[0], [math.nan] * len(group.completions[1])]  # the second is the reference's own
            trees.append(self.pair_tree(group, index, (0, 1), policy_wins=probability > 0.5, sampler_logps=told))
        self.count_dropped(groups, trees, training)
        return trees

    def loss(self, scores: Scores, batch: Batch, step: StepContext) -> LossOutput:
        if self.offline:
            return exponential_output(scores, step.ref, self.beta)
        policy, ref = scores.sum().view(-1, 2), step.ref.sum().view(-1, 2)  # (B, 2): own, opponent
        wins = tree_field(batch, "policy_wins", dtype=torch.bool)  # (B,)
        columns = (policy[:, 0], ref[:, 0], policy[:, 1], ref[:, 1], wins)
        options = {"beta": self.beta, "loss_type": self.args.loss_type}
        values = xpo_loss(*columns, alpha=self.alpha, **options)
        lost = (~wins).long()
        order = torch.stack([lost, 1 - lost], 1)  # (B, 2), the chosen one first
        chosen_first, kl = policy.detach().gather(1, order), (policy - ref).detach()
        metrics = pair_metrics(scores, self.beta * kl.gather(1, order), chosen_first)
        metrics |= objective_metrics(scores, policy[:, 0], ref[:, 0], self.beta) | self.sampler_gap(scores, batch)
        ranked = tree_field(batch, "scores", dtype=torch.float64)
        ended = tree_field(batch, "ended", dtype=torch.float64)
        bonus = self.alpha * policy[:, 1]
        metrics |= {
            "loss/dpo": mean_of(values - bonus),
            "loss/xpo": mean_of(bonus),
            "objective/model_scores": mean_of(ranked[:, 0]),
            "objective/ref_scores": mean_of(ranked[:, 1]),
            "objective/scores_margin": mean_of(ranked[:, 0] - ranked[:, 1]),
            "val/model_contain_eos_token": mean_of(ended[:, 0]),
            "val/ref_contain_eos_token": mean_of(ended[:, 1]),
            "alpha": Mean(self.alpha, 1.0),
        }
        return LossOutput([Term(values, "trees")], metrics)


def exponential_output(scores: Scores, ref_scores: Scores, beta: float) -> LossOutput:
    """DPO's `exponential` loss of given pairs."""
    policy, ref = scores.sum().view(-1, 2), ref_scores.sum().view(-1, 2)  # (B, 2) each: chosen, rejected
    values = dpo_loss(*policy.unbind(1), *ref.unbind(1), beta=beta, loss_type="exponential")
    metrics = pair_metrics(scores, beta * (policy - ref).detach(), policy.detach())
    return LossOutput([Term(values, "trees")], metrics | exponential_metrics(values))
