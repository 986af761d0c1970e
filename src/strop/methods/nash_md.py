"""Nash-MD: play against a mixture of policy and reference, and move towards what a preference model prefers."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch

from strop.collectives import sum_over_ranks
from strop.engine.step import tree_field
from strop.losses import adversarial_loss, mean_of, nash_md_loss_flat, preference_metrics
from strop.methods.own_pairs import (
    OPPONENT_UNUSED,
    OnlinePairConfig,
    OnlinePairTrainer,
    at_epoch,
    objective_metrics,
    preferences,
)
from strop.metric import LOSS, REWARD, Entry
from strop.online.groups import Group
from strop.records import Batch, Example, LossOutput, Mean, Sampled, Scores, StepContext, Term
from strop.settings.prerequisites import Needs
from strop.settings.schema import OneOrMore, Range, config


@config
class NashMDConfig(OnlinePairConfig):
    """Settings of `NashMDTrainer`."""

    headline: ClassVar[tuple[str, ...]] = ("reward", "rewards/probabilities")
    unused: ClassVar[dict[str, str]] = {
        **OnlinePairConfig.unused,
        **OPPONENT_UNUSED,
        "loss_type": "Nash-MD has one loss; see gradient_form and objective.",
        "num_generations_eval": "Each prompt has one completion of the policy and one of the opponent.",
        "max_staleness": "The opponent is mixed from the policy of the moment: completions sampled ahead would be "
        "an older opponent's, and the loss has no weight for that; remove it.",
    }
    needs: ClassVar[dict[str, Needs]] = {**OnlinePairConfig.needs, "gradient_form": Needs({"objective": ("nash",)})}

    mixture_coef: Annotated[list[float], Range(min=0, max=1), OneOrMore()] = 0.5
    """Weight of the reference in the opponent's mixture; 0 is self-play, 1 the reference. A list: one per epoch."""
    gradient_form: Literal["reward_to_go", "sequence", "trl"] = "reward_to_go"
    """reward_to_go: unbiased, least noise. sequence: the paper's estimate. trl: TRL's biased one, for comparison."""
    objective: Literal["nash", "adversarial"] = "nash"
    """nash: the paper. adversarial: maximise reward against the worst penalty, which is a KL to the reference."""
    num_generations: Annotated[int, Range(min=1, max=1)] = 1
    """Completions of the policy per prompt; each meets one opponent."""


class NashMDTrainer(OnlinePairTrainer):
    """Nash mirror descent: L = -sum_t sg(P(y > y') - 1/2 - beta K_t) log pi(y_t | y_<t), mean over prompts.

    y comes from the policy; y' from (1 - eta) log pi + eta log mu, mixed token by token. P is a judge's probability,
    or sigmoid(R(y) - R(y')) of rewards. The value of the loss says nothing. Rows: `prompt`.
    Source: arXiv 2312.00886, Appendix F. Differs from the paper: the KL is summed from each token on (`gradient_form`).
    Both expectations are over the policy of the moment, y' through its mixture: `max_staleness` is refused.
    """

    config_class = NashMDConfig
    has_opponent = True
    tree_completions = 1  # the opponent's is compared with, and not learned from
    # fmt: off
    glossary: ClassVar[tuple[Entry, ...]] = (
        Entry(
            "loss", LOSS, "Policy-gradient loss; its value says nothing about progress.", "none", "completion",
            healthy="watch rewards/probabilities",
        ),
        Entry("loss/score", LOSS, "Score part of the loss.", "none", "completion"),
        Entry("loss/kl", LOSS, "KL part of the loss.", "nats", "completion"),
        Entry("mixture_coef", LOSS, "Weight of the reference in the opponent.", "none", "step"),
        Entry(
            "rewards/chosen", REWARD, "Score of the policy's completion.", "reward", "completion", healthy="rises",
        ),
        Entry("rewards/rejected", REWARD, "Score of the mixture's completion.", "reward", "completion"),
        Entry(
            "rewards/probabilities", REWARD,
            "Preference model's probability that the policy's completion beats the opponent's.", "share", "pair",
            healthy="0.5 is a draw",
        ),
    )
    # fmt: on
    verdict_metric = "rewards/probabilities"
    samples_reference = True

    @property
    def mixture_coef(self) -> float:
        """The opponent's coefficient of the current epoch."""
        return at_epoch(self.args.mixture_coef, self.state.epoch)

    @property
    def opponent_weight(self) -> float:
        return self.mixture_coef

    def make_trees(self, groups: list[Group], training: bool) -> list[Example]:
        probabilities = preferences(groups, judge=self.has_judge)
        kept = [(i, g, p) for i, (g, p) in enumerate(zip(groups, probabilities, strict=True)) if p is not None]
        means = [float(g.rewards[0]) for _, g, _ in kept]
        everyone = sum_over_ranks({"total": sum(means), "count": float(len(means))}, self.args.world_size)
        trees = []
        for index, group, probability in kept:
            known = Sampled(
                index,
                probability=probability,
                scores=group.rewards.tolist(),
                baseline=(everyone["total"] - float(group.rewards[0])) / max(everyone["count"] - 1, 1.0),
                ended=[float(reason == "stop") for reason in group.finish_reasons],
                sampler_logps=group.sampler_logps[:1],
            )
            trees.append(group.tree([0], drop_truncated=self.args.mask_truncated_completions, sampled=known))
        return trees

    def loss(self, scores: Scores, batch: Batch, step: StepContext) -> LossOutput:
        policy, ref = scores.sum(), step.ref.sum()  # (B,)
        probability = tree_field(batch, "probability", dtype=policy.dtype)  # (B,)
        ranked = tree_field(batch, "scores", dtype=policy.dtype)  # (B, 2)
        if self.args.objective == "adversarial":
            baseline = tree_field(batch, "baseline", dtype=policy.dtype)
            values = adversarial_loss(policy, ref, ranked[:, 0], beta=self.beta, baseline=baseline)
        else:
            form = self.args.gradient_form
            per_token = nash_md_loss_flat(
                scores.logps,
                step.ref.logps,
                probability,
                scores.segment,
                scores.num_completions,
                beta=self.beta,
                form=form,
            )
            values = scores.sum(per_token)
        kl = (policy - ref).detach()
        ended = tree_field(batch, "ended", dtype=torch.float64)
        metrics = {
            **objective_metrics(scores, policy, ref, self.beta),
            **self.sampler_gap(scores, batch),
            "loss/score": mean_of((probability - 0.5) * policy),
            "loss/kl": mean_of(self.beta * kl),
            "rewards/probabilities": mean_of(probability),
            **preference_metrics(ranked[:, 0], ranked[:, 1]),
            "logps/chosen": mean_of(policy),
            "logps/rejected": mean_of(ref),
            "val/model_contain_eos_token": mean_of(ended[:, 0]),
            "val/ref_contain_eos_token": mean_of(ended[:, 1]),
            "mixture_coef": Mean(self.mixture_coef, 1.0),
        }
        return LossOutput([Term(values, "trees")], metrics)
