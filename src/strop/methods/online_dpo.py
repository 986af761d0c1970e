"""Online DPO: sample, let a reward or a judge choose, learn from the pair."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

import torch

from strop.engine.step import tree_field
from strop.losses import dpo_loss, mean_of
from strop.methods.own_pairs import OnlinePairConfig, OnlinePairTrainer, objective_metrics
from strop.methods.pairs import pair_metrics
from strop.online.groups import Group
from strop.online.one_context import OneContext, comparable
from strop.online.sampling import Drawn, Load
from strop.records import Batch, Example, LossOutput, Mean, Sampled, Scores, StepContext, Term
from strop.rollout import SamplingParams
from strop.settings.schema import Range, config


@config
class OnlineDPOConfig(OnlinePairConfig):
    """Settings of `OnlineDPOTrainer`."""

    num_generations: Annotated[int, Range(min=2)] = 2
    """Completions sampled for each prompt; the best and the worst make the pair."""
    num_generations_eval: Annotated[int, Range(min=2)] | None = None
    """Completions per prompt in evaluation. None: as in training."""


class OnlineDPOTrainer(OnlinePairTrainer):
    """DPO on pairs sampled from the current policy: the best and the worst of `num_generations` completions.

    `reward_funcs` are functions, models, ids or judges. Ties and identical completions carry no preference: they are
    left out and counted (`pairs/dropped_ratio`). Completions without an end lose `missing_eos_penalty`.
    With `max_staleness` pairs are of older weights and learned from as they are: DPO's minimiser is the same for every
    distribution of pairs that covers the completions (off-policy preference learning, arXiv 2410.18252).
    Rows: `prompt`. Source: arXiv 2402.04792.
    """

    config_class = OnlineDPOConfig

    def after_init(self) -> None:
        super().after_init()
        self.one_context = OneContext("OnlineDPO")

    def drawing(self, prompts: Sequence[Example], n: int, params: SamplingParams, load: Load) -> Callable[[], Drawn]:
        draw, has_learned = super().drawing(prompts, n, params, load), self.state.global_step > 0

        def checked() -> Drawn:
            groups, counted = draw()
            self.one_context.check(groups, has_learned=has_learned)
            return groups, counted

        return checked

    def make_trees(self, groups: list[Group], training: bool) -> list[Example]:
        if apart := sum(len(group.completions) - len(comparable(group)) for group in groups):
            count = Mean(float(apart), float(sum(len(group.completions) for group in groups)))
            self._metrics["train" if training else "eval"].add({"pairs/apart_ratio": count})
        trees = []
        for index, group in enumerate(groups):
            pair = best_and_worst(group)
            if pair is None:
                continue
            assert group.rewards is not None
            known = Sampled(
                index,
                scores=[float(group.rewards[i]) for i in pair],
                ended=[float(group.finish_reasons[i] == "stop") for i in pair],
                sampler_logps=[group.sampler_logps[i] for i in pair],
                version=group.version,
            )
            trees.append(group.tree(pair, drop_truncated=self.args.mask_truncated_completions, sampled=known))
        self.count_dropped(groups, trees, training)
        return trees

    def loss(self, scores: Scores, batch: Batch, step: StepContext) -> LossOutput:
        assert step.ref is not None
        policy, ref = scores.sum().view(-1, 2), step.ref.sum().view(-1, 2)  # (B, 2) each
        columns = (policy[:, 0], policy[:, 1], ref[:, 0], ref[:, 1])
        values = dpo_loss(*columns, beta=self.beta, loss_type=self.args.loss_type)
        rewards = self.beta * (policy - ref).detach()
        metrics = pair_metrics(scores, rewards, policy.detach())
        metrics |= objective_metrics(scores, policy, ref, self.beta) | self.sampler_gap(scores, batch)
        ranked = tree_field(batch, "scores", dtype=torch.float64)  # (B, 2)
        metrics["objective/scores"] = mean_of(ranked)
        metrics["objective/scores_margin"] = mean_of(ranked[:, 0] - ranked[:, 1])
        metrics["objective/rlhf_reward"] = mean_of(ranked.to(policy) - self.beta * (policy - ref))
        metrics["val/contain_eos_token"] = mean_of(tree_field(batch, "ended", dtype=torch.float64))
        return LossOutput([Term(values, "trees")], metrics)


def best_and_worst(group: Group) -> tuple[int, int] | None:
    """Indices of the best and the worst rewarded completion on the prompt; None for a tie or identical ones."""
    assert group.rewards is not None
    known = [i for i in comparable(group) if not group.rewards[i].isnan()]
    if len(known) < 2:
        return None
    best, worst = max(known, key=lambda i: float(group.rewards[i])), min(known, key=lambda i: float(group.rewards[i]))  # type: ignore[index]
    same = (
        float(group.rewards[best]) == float(group.rewards[worst]) or group.completions[best] == group.completions[worst]
    )
    return None if same else (best, worst)
