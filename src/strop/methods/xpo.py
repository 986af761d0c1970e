"""XPO: exploratory preference optimisation. Online with a reward; on given pairs, the exponential loss."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, ClassVar, Literal

import torch

from strop.engine.step import tree_field
from strop.errors import ConfigError
from strop.losses import dpo_loss, exponential_metrics, mean_of, xpo_loss
from strop.methods.pairs import PairTrainer, pair_metrics
from strop.online.groups import Group
from strop.online.opponents import OPPONENT_UNUSED, preferences, rollout_against
from strop.online.own_pairs import OnlinePairConfig, OnlinePairTrainer, at_epoch, objective_metrics
from strop.records import Batch, Example, LossOutput, Mean, Scores, StepContext, Term
from strop.settings.config import ReferenceConfig
from strop.settings.schema import Range, config

OF_GIVEN_PAIRS = ("truncation_mode", "precompute_ref_log_probs", "precompute_ref_batch_size")
"""Settings that act on pairs that are given, and not on those that are sampled."""


@config
class XPOConfig(OnlinePairConfig):
    """Settings of `XPOTrainer`."""

    unused: ClassVar[dict[str, str]] = {
        **{name: why for name, why in OnlinePairConfig.unused.items() if name not in OF_GIVEN_PAIRS},
        **OPPONENT_UNUSED,
        "num_generations_eval": "Each prompt has one completion of the policy and one of the reference.",
    }

    mode: Literal["auto", "online", "offline_exponential"] = "auto"
    """auto: online where a reward or judge is given, else the exponential loss on preference pairs."""
    loss_type: Literal["auto", "sigmoid", "ipo", "exponential"] = "auto"
    """Online: sigmoid or ipo. Offline: exponential. auto: the first that fits the mode."""
    alpha: Annotated[float, Range(min=0)] | list[float] = 1e-5
    """Weight of the exploration bonus (online); it must be tiny. A list: one per epoch."""
    num_generations: Annotated[int, Range(min=1, max=1)] = 1
    """Completions of the policy per prompt; each meets one of the reference."""


class XPOTrainer:
    """Exploratory preference optimisation.

    With a reward or judge (online): y from the policy, y~ from the reference, L = DPO(y, y~ by preference) +
    alpha log pi(y~); the bonus lowers what the reference would say and so makes the policy explore. Rows: `prompt`.
    Without one (offline): L = e^(-beta (u_w - u_l)) on preference pairs; rows: `prompt`, `chosen`, `rejected`.
    Source: arXiv 2405.21046 Algorithm 1; offline: the exponential member of GPO, arXiv 2402.05749.
    Differs from the paper: each step learns from its own pairs, not from all pairs so far.
    """

    config_class = XPOConfig

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        if cls is not XPOTrainer:
            return object.__new__(cls)
        settings = kwargs.get("args", args[3] if len(args) > 3 else args[2] if len(args) > 2 else None)
        reward = any(kwargs.get(name) is not None for name in ("reward_funcs", "reward_model", "judge"))
        reward = reward or (len(args) > 2 and not isinstance(args[2], XPOConfig) and args[2] is not None)
        reward = reward or getattr(settings, "reward_model_path", None) is not None
        mode = getattr(settings, "mode", "auto")
        if mode == "online" and not reward:
            raise ConfigError(
                "XPOTrainer with mode='online' needs a reward: pass reward_funcs=, a function, a model, an id, or a "
                "judge."
            )
        if mode == "offline_exponential" and reward:
            raise ConfigError(
                "XPOTrainer with mode='offline_exponential' learns from pairs and asks no reward; remove reward_funcs."
            )
        return object.__new__(OnlineXPOTrainer if reward else OfflineXPOTrainer)

    def __init__(
        self,
        model: Any = None,
        ref_model: Any = None,
        reward_funcs: Any = None,
        args: XPOConfig | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, ref_model, reward_funcs, args, **kwargs)  # type: ignore[call-arg]


class OfflineXPOTrainer(XPOTrainer, PairTrainer):
    """XPO on given pairs."""

    uses_reference = True

    def __init__(
        self,
        model: Any = None,
        ref_model: Any = None,
        reward_funcs: Any = None,
        args: XPOConfig | None = None,
        **kwargs: Any,
    ) -> None:
        args = args or XPOConfig()
        if args.loss_type not in ("auto", "exponential"):
            raise ConfigError(
                f"loss_type={args.loss_type!r} on given pairs is a loss of DPOTrainer; offline XPO is 'exponential'."
            )
        if idle := settings_of_sampling(args):
            raise ConfigError(
                "XPOTrainer was given no reward, so it learns from given pairs and samples nothing; these settings "
                f"have no effect: {', '.join(idle)}. Pass reward_funcs= (or judge=), or remove them."
            )
        for name in ("reward_model", "judge"):
            kwargs.pop(name, None)
        PairTrainer.__init__(self, model, args, ref_model=ref_model, **kwargs)

    def loss(self, scores: Scores, batch: Batch, step: StepContext) -> LossOutput:
        assert step.ref is not None
        policy, ref = scores.sum().view(-1, 2), step.ref.sum().view(-1, 2)  # (B, 2) each
        columns = (policy[:, 0], policy[:, 1], ref[:, 0], ref[:, 1])
        beta = at_epoch(self.args.beta, self.state.epoch)
        values = dpo_loss(*columns, beta=beta, loss_type="exponential")
        metrics = pair_metrics(scores, beta * (policy - ref).detach(), policy.detach())
        return LossOutput([Term(values, "trees")], metrics | exponential_metrics(values))


def settings_of_sampling(args: XPOConfig) -> list[str]:
    """Settings that only the online mode reads, where they differ from their defaults."""
    shared = {f.name for f in dataclasses.fields(ReferenceConfig)} | {"beta", "mode", "loss_type"}
    return [f.name for f in dataclasses.fields(args) if f.name not in shared and getattr(args, f.name) != f.default]


class OnlineXPOTrainer(XPOTrainer, OnlinePairTrainer):
    """XPO with a reward or a judge."""

    has_opponent = True

    def __init__(
        self,
        model: Any = None,
        ref_model: Any = None,
        reward_funcs: Any = None,
        args: XPOConfig | None = None,
        **kwargs: Any,
    ) -> None:
        args = args or XPOConfig()
        if idle := [name for name in OF_GIVEN_PAIRS if getattr(args, name) != getattr(XPOConfig, name)]:
            advice = "\n".join(f"  - {name}: {OnlinePairConfig.unused[name]}" for name in idle)
            raise ConfigError(f"XPOTrainer was given a reward, so it samples its pairs. No effect have:\n{advice}")
        args.loss_type = "sigmoid" if args.loss_type == "auto" else args.loss_type
        if args.loss_type not in ("sigmoid", "ipo"):
            raise ConfigError(
                f"loss_type={args.loss_type!r} is for pairs that are given; online XPO knows 'sigmoid' and 'ipo'."
            )
        OnlinePairTrainer.__init__(self, model, ref_model, reward_funcs, args, **kwargs)

    @property
    def alpha(self) -> float:
        """The bonus weight of the current epoch."""
        return at_epoch(self.args.alpha, self.state.epoch)

    def rollout(self, prompts: Any, n: int, training: bool) -> list[Group]:
        return rollout_against(self, super().rollout, prompts, training, 1.0)

    def make_trees(self, groups: list[Group], training: bool) -> list[Example]:
        trees = []
        for index, (group, probability) in enumerate(
            zip(groups, preferences(groups, judge=self.has_judge), strict=True)
        ):
            if probability is None or probability == 0.5 or group.completions[0] == group.completions[1]:
                continue
            assert group.rewards is not None
            extras = {
                "prompt_index": index,
                "policy_wins": probability > 0.5,
                "scores": group.rewards.tolist(),
                "ended": [float(reason == "stop") for reason in group.finish_reasons],
            }
            trees.append(group.tree(drop_truncated=self.args.mask_truncated_completions, extras=extras))
        self.count_dropped(groups, trees, training)
        return trees

    def loss(self, scores: Scores, batch: Batch, step: StepContext) -> LossOutput:
        assert step.ref is not None
        policy, ref = scores.sum().view(-1, 2), step.ref.sum().view(-1, 2)  # (B, 2): own, opponent
        wins = tree_field(batch, "policy_wins", dtype=torch.bool)  # (B,)
        columns = (policy[:, 0], ref[:, 0], policy[:, 1], ref[:, 1], wins)
        options = {"beta": self.beta, "loss_type": self.args.loss_type}
        values = xpo_loss(*columns, alpha=self.alpha, **options)
        order = torch.where(
            wins[:, None], torch.tensor([0, 1], device=wins.device), torch.tensor([1, 0], device=wins.device)
        )
        chosen_first, kl = policy.detach().gather(1, order), (policy - ref).detach()
        metrics = pair_metrics(scores, self.beta * kl.gather(1, order), chosen_first)
        metrics |= objective_metrics(scores, policy[:, 0], ref[:, 0], self.beta)
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
