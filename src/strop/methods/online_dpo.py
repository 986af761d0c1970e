"""Online DPO: sample, let a reward or a judge choose, learn from the pair."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated

import torch

from strop.engine.step import tree_field
from strop.errors import RolloutError
from strop.losses import dpo_loss, mean_of
from strop.methods.own_pairs import OnlinePairConfig, OnlinePairTrainer, objective_metrics
from strop.methods.pairs import pair_metrics
from strop.online.groups import Group
from strop.online.sampling import Drawn, Load
from strop.records import Batch, Example, LossOutput, Mean, Scores, StepContext, Term
from strop.rollout import SamplingParams
from strop.settings.schema import Range, config


@config
class OnlineDPOConfig(OnlinePairConfig):
    """Settings of `OnlineDPOTrainer`."""

    num_generations: Annotated[int, Range(min=2)] = 2
    """Completions sampled for each prompt; the best and the worst make the pair."""
    num_generations_eval: Annotated[int, Range(min=2)] | None = None


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
        self.has_compared = False

    def drawing(self, prompts: Sequence[Example], n: int, params: SamplingParams, load: Load) -> Callable[[], Drawn]:
        draw, has_learned = super().drawing(prompts, n, params, load), self.state.global_step > 0

        def checked() -> Drawn:
            groups, counted = draw()
            self.check_contexts(groups, has_learned=has_learned)
            return groups, counted

        return checked

    def check_contexts(self, groups: Sequence[Group], *, has_learned: bool) -> None:
        """Stop a run in which no two completions could ever be compared, before anybody is asked to reward them: the
        user's function, environment or template makes contexts that differ. Later ones are left out, and counted. A run
        that `has_learned`, before it was gone on with too, has compared some.
        """
        self.has_compared |= has_learned or any(len(group.comparable) > 1 for group in groups)
        if groups and not self.has_compared:
            raise RolloutError(
                "OnlineDPO compares completions of one prompt, and no two completions of a prompt lie on one "
                f"context (row {groups[0].example.row} is the first). A rollout_func must return one context for all "
                "completions of a prompt (no stretches, the same prompt_ids), reset() of an environment must depend on "
                "the row alone, and the chat template must not rewrite past turns. Or use GRPO, RLOO or PPO, which "
                "learn from each completion on its own context."
            )

    def make_trees(self, groups: list[Group], training: bool) -> list[Example]:
        if apart := sum(len(group.completions) - len(group.comparable) for group in groups):
            count = Mean(float(apart), float(sum(len(group.completions) for group in groups)))
            self._metrics["train" if training else "eval"].add({"pairs/apart_ratio": count})
        trees = []
        for index, group in enumerate(groups):
            pair = best_and_worst(group)
            if pair is None:
                continue
            trees.append(self.pair_tree(group, index, pair))
        self.count_dropped(groups, trees, training)
        return trees

    def loss(self, scores: Scores, batch: Batch, step: StepContext) -> LossOutput:
        policy, ref = scores.sum().view(-1, 2), step.ref.sum().view(-1, 2)  # (B, 2) each
        values = dpo_loss(*policy.unbind(1), *ref.unbind(1), beta=self.beta, loss_type=self.args.loss_type)
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
    rewards = group.rewards.tolist()
    known = [i for i in group.comparable if not math.isnan(rewards[i])]
    if len(known) < 2:
        return None
    best, worst = max(known, key=rewards.__getitem__), min(known, key=rewards.__getitem__)
    same = rewards[best] == rewards[worst] or group.completions[best] == group.completions[worst]
    return None if same else (best, worst)
