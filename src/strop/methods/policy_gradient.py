"""What GRPO and RLOO share: one advantage per completion, or one per turn of it; old log-probs."""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import Any, ClassVar

import torch

from strop.collectives import sum_over_ranks
from strop.device import Fetched
from strop.engine.sharding import is_sharded
from strop.engine.step import MicroBatch, token_field, token_lists, write_token_lists
from strop.errors import ConfigError
from strop.losses import off_policy_mask, returns_by_turn, top_entropy_mask
from strop.metric import CLIPPING, LOSS, REWARD, Entry
from strop.online.groups import Group, groups_of_all_ranks
from strop.online.in_parts import check_can_learn_in_parts, learn_in_parts
from strop.online.pieces import trajectory_of
from strop.online.refill import chosen, further_rows, window_of, with_further
from strop.online.trainer import OnlineTrainer
from strop.online.turn_credit import unrewarded, with_turns
from strop.records import Batch, Example, LossOutput, Sampled, Scores, StepWork


class PolicyGradientTrainer(OnlineTrainer):
    """Trees are prompts with their G completions; `sampled.advantages` has a number for each completion.

    With `advantage_level="turn"` it is that of the first turn, and `sampled.token_advantages` has those of all.
    """

    glossary: ClassVar[tuple[Entry, ...]] = (
        Entry(
            "loss", LOSS,
            "Objective: a clipped, advantage-weighted policy gradient, whose value says nothing about progress.",
            "none", "as the loss type says", healthy="near 0 at every step; watch the reward",
            advice="Advantages add up to 0 in a group, so 0 is what an on-policy step gives. Look at reward and kl.",
        ),
        Entry(
            "dynamic_sampling/kept_ratio", REWARD,
            "Share of the sampled groups that were learned from, because their rewards differ.", "share", "prompt",
            low=0.2, healthy="falls as prompts are mastered",
            advice="Low: most sampling is thrown away; use harder prompts.",
        ),
        Entry(
            "clip_ratio/low_mean", CLIPPING,
            "Share of tokens clipped from below (probability fell, advantage negative).", "share",
            "token; completion where its ratio is clipped", high=0.2,
            advice="High: fewer num_iterations or a lower learning rate.",
        ),
        Entry(
            "clip_ratio/low_min", CLIPPING, "Lowest share of a completion clipped from below.", "share", "completion",
        ),
        Entry(
            "clip_ratio/high_mean", CLIPPING,
            "Share of tokens clipped from above (probability rose, advantage positive).", "share",
            "token; completion where its ratio is clipped", high=0.2,
            advice="High: raise epsilon_high, or fewer num_iterations.",
        ),
        Entry(
            "clip_ratio/high_max", CLIPPING, "Highest share of a completion clipped from above.", "share", "completion",
        ),
        Entry(
            "clip_ratio/region_mean", CLIPPING, "Share of tokens clipped at either side.", "share", "token", high=0.3,
        ),
    )  # fmt: skip
    tree_completions = 0
    advantages_need_all_ranks = False
    can_fork = True

    def after_init(self) -> None:
        super().after_init()
        self.left_behind: list[tuple[Batch, dict[str, Fetched]]] = []  # of the step in progress
        if self.by_turn and not self.turns_wanted:
            raise ConfigError(
                "advantage_level='turn' needs completions of several turns; give tools, environment_factory or "
                "rollout_func, or leave it at 'completion'."
            )
        if self.args.stream_prompts is not None:
            check_can_learn_in_parts(self)

    def training_step(self, model: torch.nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        if self.args.stream_prompts is None or not inputs or isinstance(inputs, StepWork):
            return super().training_step(model, inputs, num_items_in_batch)
        return learn_in_parts(self, model, inputs, self.divided_by)

    @property
    def divided_by(self) -> str:
        """The count that divides all terms of the loss, where a step is learned from in parts."""
        return "completions"

    @property
    def by_turn(self) -> bool:
        """Whether each turn of a completion has its own advantage."""
        return self.args.advantage_level == "turn"

    @property
    def silent_groups_cost_nothing(self) -> bool:
        """Whether a group whose advantages are all 0 has no gradient, and is left out of the forward pass."""
        return False

    def advantages(self, groups: list[Group]) -> torch.Tensor:
        """Advantages (completions,) of rewarded groups, in order."""
        return self.compare(torch.cat([self.totals(group) for group in groups]), len(groups[0].completions))

    def compare(self, totals: torch.Tensor, size: int) -> torch.Tensor:
        """Advantages (completions,) of one number for each completion, in groups of `size`."""
        raise TypeError(f"{type(self).__name__} must define compare(totals, size) -> (completions,)")

    def make_trees(self, groups: list[Group], training: bool) -> list[Example]:
        groups = self.select_groups(groups) if training else groups
        self.assign_advantages(groups)
        trees = [tree for index, group in enumerate(groups) for tree in self.trees(group, index)]
        if not training:
            return trees
        return [piece for tree in trees for piece in self.pieces(tree)]

    def select_groups(self, groups: list[Group]) -> list[Group]:
        """Groups to learn from: all, or with `dynamic_sampling` those whose rewards differ, refilled."""
        if not getattr(self.args, "dynamic_sampling", False):
            return groups
        if self.ahead is not None:  # further ones were drawn with them
            return chosen(groups, self.has_spread)

        def draw(rows: list[int]) -> list[Group]:
            self.rounds += 1
            fresh = self.rollout([self.train_dataset[row] for row in rows], self.group_size, training=True)
            self.score_groups(fresh, "train")
            return fresh

        places = self.further_rows(window_of(self), {group.example.row for group in groups})
        everyone, share = with_further(
            groups, self.has_spread, places, draw, self.args.max_resampling_rounds, self.any_rank_lacks
        )
        self._metrics["train"].add(share)
        return chosen(everyone, self.has_spread)

    def any_rank_lacks(self, groups: int) -> bool:
        """Whether this rank lacks groups; of ranks that share a policy in shards, and sample together, whether any."""
        if not is_sharded(self.accelerator):
            return groups > 0
        return sum_over_ranks({"groups": float(groups)}, self.args.world_size)["groups"] > 0

    def further_rows(self, window: int, used: Container[int]) -> Iterator[int]:
        """Places of the rows that replace those of a window, whose numbers are `used`, where they teach nothing."""
        seed = self.args.seed * 7919 + window
        return further_rows(self.train_dataset, seed, self.args.process_index, used)

    def has_spread(self, group: Group) -> bool:
        """Whether the rewards of a group differ, or with credit by turn what was still to come at one of its turns."""
        compared = group.rewards.double()[:, None]  # (G, 1)
        if self.by_turn:
            compared = returns_by_turn(compared[:, 0], group.turn_rewards or unrewarded(group))  # (G, turns)
        known = compared[~group.rewards.isnan()]
        return len(known) > 1 and bool((known.amax(0) > known.amin(0)).any())

    def assign_advantages(self, groups: list[Group]) -> None:
        """Write each group's advantages; statistics over the batch see the rewards of all ranks."""
        everyone = groups
        if self.by_turn:
            for group in groups:
                group.turn_rewards = group.turn_rewards or unrewarded(group)
        if self.advantages_need_all_ranks and self.args.world_size > 1:
            everyone = groups_of_all_ranks(groups, self.args.world_size, self.args.process_index)
        if not everyone:
            return
        by_turn = self.turn_advantages(everyone) if self.by_turn else None  # (completions, turns)
        flat = self.advantages(everyone).double() if by_turn is None else by_turn[:, 0]
        start = 0
        for group in everyone:
            own = slice(start, start := start + len(group.completions))
            group.advantages = flat[own]
            if by_turn is not None and group.turn_rewards is not None:
                turns = zip(by_turn[own].tolist(), group.turn_rewards, strict=True)
                group.turn_advantages = [values[: len(rewards)] for values, rewards in turns]

    def turn_advantages(self, groups: list[Group]) -> torch.Tensor:
        """Advantages (completions, most turns): of each turn, what was still to come against the others' same turn."""
        totals = torch.cat([self.totals(group) for group in groups]).double()
        returns = returns_by_turn(totals, [rewards for group in groups for rewards in group.turn_rewards or []])
        size = len(groups[0].completions)
        return torch.stack([self.compare(column, size) for column in returns.unbind(1)], 1)

    def totals(self, group: Group) -> torch.Tensor:
        """What each completion of a group is worth in all, (G,)."""
        return group.rewards

    def trees(self, group: Group, place: int = 0) -> list[Example]:
        """A group as trees to train on: one, and one more for each stretch of a trajectory with contexts of its own."""
        advantages = None if group.advantages is None else group.advantages.tolist()
        known = Sampled(place, advantages=advantages, sampler_logps=group.sampler_logps, version=group.version)
        return self.trees_of(group, with_turns(known, group))

    def rows_worth_computing(self, examples: list[Example]) -> list[Example]:
        if not self.silent_groups_cost_nothing:
            return examples
        return [
            e
            for e in examples
            if any(map(any, e.sampled.token_advantages or [e.sampled.advantages or []]))
            and any(any(e.mask(i)) for i in range(len(e.completions)))
        ]

    def old_logps(self, scores: Scores, batch: Batch) -> torch.Tensor | None:
        """Log-probs (N,) at the start of the window; None on the first use, when they are the current ones."""
        if all(example.sampled.old_logps is not None for example in batch.examples):
            return token_field(batch, "old_logps").to(scores.logps.dtype)
        return None

    def reduce(self, output: LossOutput, micro: MicroBatch) -> torch.Tensor:
        """The first use of a round that is used again leaves its log-probs behind, to be compared with."""
        loss, scores, batch = super().reduce(output, micro), micro.scores, micro.batch
        if self.sizes.steps > 1 and scores.logps is not None and self.old_logps(scores, batch) is None:
            self.left_behind.append((batch, {"old_logps": Fetched(scores.logps)}))
        return loss

    def record(self, work: StepWork, loss: torch.Tensor) -> None:
        """As for other methods; what the step left behind is there by now, because the guard has waited."""
        super().record(work, loss)
        for batch, fields in self.left_behind:
            write_token_lists(batch, fields)
        self.left_behind.clear()

    def fix_old_logps(self, steps: list[list[Example]]) -> None:
        """Steps after the first compare with the policy as it is now: score them before it moves."""
        for step in steps[1:]:
            own = self.plan(step, self.args.train_batch_size)
            for index, part in enumerate([*own, *self.fillers(own)]):
                batch = self.build(part)
                with torch.no_grad(), self.compute_loss_context_manager():
                    logps = self.score(self.model, batch, False).logps
                if index < len(own):
                    token_lists(batch, old_logps=logps)


def kept_tokens(
    scores: Scores, batch: Batch, advantages: torch.Tensor, share: float, threshold: Any, drift: float | None
) -> torch.Tensor | None:
    """Tokens that the policy term learns from, (N,) bool, or None for all.

    Args:
        advantages: (N,).
        share: of the tokens, those of the highest entropy; below 1 only.
        threshold: the entropy that they begin at, over the step.
        drift: nats per token that a failed completion may have moved away from its sampler.
    """
    keep = None
    if share < 1:
        keep = top_entropy_mask(scores.entropy, top_quantile=share, threshold=threshold)
    if drift is not None:
        sampler_logps = token_field(batch, "sampler_logps")
        fresh = off_policy_mask(scores.logps, sampler_logps, advantages, *trajectory_of(batch), threshold=drift)
        keep = fresh if keep is None else keep & fresh
    return keep
