"""RLOO: REINFORCE on whole completions with the mean of the other completions as baseline."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch

from strop.engine.step import completion_field, token_field
from strop.losses import (
    clip_metrics,
    completion_weights,
    leave_one_out,
    mean_of,
    normalize_advantages,
    rloo_loss,
    rloo_rewards,
    sampler_metrics,
    segment_sum,
)  # fmt: skip
from strop.methods.policy_gradient import PolicyGradientTrainer
from strop.online.groups import Group
from strop.online.pieces import one_each, trajectory_of
from strop.online.turn_credit import turns_of
from strop.records import Batch, LossOutput, Scores, StepContext, Term, Want
from strop.settings import earlier
from strop.settings.off_policy import PolicyGradientConfig
from strop.settings.schema import Range, config


@config
class RLOOConfig(PolicyGradientConfig):
    """Settings of `RLOOTrainer`."""

    aliases: ClassVar[dict[str, str]] = {**PolicyGradientConfig.aliases, **earlier.RLOO_ALIASES}
    removed: ClassVar[dict[str, str]] = {**PolicyGradientConfig.removed, **earlier.RLOO_REMOVED}
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {**PolicyGradientConfig.neutral, **earlier.RLOO_NEUTRAL}

    disable_dropout: bool = False
    """Set every dropout of the model to 0."""
    num_generations: Annotated[int, Range(min=2)] = 2
    num_generations_eval: Annotated[int, Range(min=2)] | None = None
    beta: Annotated[float, Range(min=0)] = 0.05
    """Weight of the KL to the reference, taken off the reward. 0: no reference is kept."""
    epsilon: Annotated[float, Range(min=0)] = 0.2
    """Clip range of the completion's ratio below 1 (acts when completions are used more than once)."""
    epsilon_high: Annotated[float, Range(min=0)] | None = None
    """Clip range above 1. None: epsilon."""
    normalize_advantages: bool = False
    """Divide advantages by their std over the batch, after centring."""
    reward_clip_range: list[float] | None = None
    """Clip rewards to [low, high] before the KL is taken off."""
    vllm_importance_sampling_mode: Literal["sequence_truncate", "sequence_mask"] | None = None
    """How: of whole completions, as the ratio is. None: sequence_mask."""

    def contradictions(self) -> list[str]:
        problems = super().contradictions()
        if self.reward_clip_range is not None and (
            len(self.reward_clip_range) != 2 or self.reward_clip_range[0] > self.reward_clip_range[1]
        ):
            problems.append(f"reward_clip_range={self.reward_clip_range}: give [low, high] with low <= high.")
        return problems

    def looks_at_whole_step(self) -> dict[str, bool]:
        return {**super().looks_at_whole_step(), "normalize_advantages": self.normalize_advantages}


class RLOOTrainer(PolicyGradientTrainer):
    """REINFORCE leave-one-out: A_i = R~_i - mean of R~_j over the others, R~ = R - beta (log pi - log mu)(y).

    L = -mean of w min(r A, clip(r) A) over completions, r the ratio of the whole completion; at first use r = 1 and the
    gradient is the paper's. w is 1, or pi / pi_sampler of the completion where other weights, or vLLM, wrote it. With
    `advantage_level="turn"` a completion has the sum over its turns, each with its own r and A. Rows: `prompt` and any
    columns that the rewards ask for. Source: arXiv 2402.14740.
    """

    config_class = RLOOConfig
    reference_in_loss = False

    @property
    def advantages_need_all_ranks(self) -> bool:  # type: ignore[override]
        return self.args.normalize_advantages

    @property
    def silent_groups_cost_nothing(self) -> bool:
        return not self.router_coef

    def score_groups(self, groups: list[Group], mode: str) -> None:
        """Rewards less the KL of the whole completion."""
        super().score_groups(groups, mode)
        clip = tuple(self.args.reward_clip_range) if self.args.reward_clip_range else None
        for group, logps, ref_logps in zip(groups, *self.summed_logps(groups, mode), strict=True):
            group.shaped = rloo_rewards(group.rewards, logps, ref_logps, beta=self.args.beta, clip_range=clip)  # type: ignore[arg-type]

    @torch.no_grad()
    def summed_logps(self, groups: list[Group], mode: str) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Log-probs of whole completions under policy and reference, (G,) for each group; zeros without a reference."""
        if self.reference_scores is None:
            zeros = [torch.zeros(len(group.completions), dtype=torch.float64) for group in groups]
            return zeros, zeros
        trees = [[p for tree in self.trees(group, i) for p in self.pieces(tree)] for i, group in enumerate(groups)]
        sums = [torch.zeros(2, len(group.completions), dtype=torch.float64) for group in groups]
        own = self.plan([piece for tree in trees for piece in tree], self.args.train_batch_size)
        for index, part in enumerate([*own, *self.fillers(own)]):
            batch = self.build(part)
            with self.compute_loss_context_manager():
                policy, ref = self.score_with(self.policy, batch, Want.LOGPS), self.reference_scores(batch)
            if index >= len(own):
                continue
            self._metrics[mode].add({"kl": mean_of(policy.logps - ref.logps)})
            whole = torch.stack((policy.sum(), ref.sum())).cpu().double()  # (2, completions)
            known = [piece.sampled for piece in part]
            for piece, values in zip(known, whole.split([len(k.of or ()) for k in known], 1), strict=True):
                sums[piece.place].index_add_(1, torch.tensor(piece.of), values)
        return [both[0] for both in sums], [both[1] for both in sums]

    def totals(self, group: Group) -> torch.Tensor:
        return group.shaped

    def compare(self, totals: torch.Tensor, size: int) -> torch.Tensor:
        values = leave_one_out(totals, num_generations=size)
        return normalize_advantages(values) if self.args.normalize_advantages else values

    def loss(self, scores: Scores, batch: Batch, step: StepContext) -> LossOutput:
        old_logps = self.old_logps(scores, batch)
        start = scores.logps.detach() if old_logps is None else old_logps  # (N,)
        clip = {"epsilon": self.args.epsilon, "epsilon_high": self.args.epsilon_high}
        completions = trajectory_of(batch)
        if self.by_turn:
            units, each = turns_of(batch), token_field(batch, "token_advantages").to(start)  # (N,)
            advantages = start.new_zeros(units[1]).index_copy(0, units[0], each)  # (turns,)
        else:
            shared = completion_field(batch, "advantages", dtype=start.dtype)  # (S,)
            units, each = completions, shared[scores.segment]
            advantages = one_each(shared, batch)  # (trajectories,)
        sums = segment_sum(scores.logps, *units)  # (units,)
        old_sums = None if old_logps is None else segment_sum(old_logps, *units)
        sampler_logps, correction = token_field(batch, "sampler_logps").to(start), self.args.correction
        weights = None
        if correction:
            weights = completion_weights(start, sampler_logps, *completions, **correction)  # (trajectories,)
            weights = weights[completion_of(units, completions)] if self.by_turn else weights
        values = rloo_loss(sums, old_sums, advantages, weights=weights, **clip)
        ratio = (sums.detach() - segment_sum(start, *units)).exp()[units[0]]  # (N,)
        metrics = clip_metrics(ratio, each, *units, by_completion=True, **clip)
        metrics |= sampler_metrics(start, sampler_logps, *completions, **correction)
        if scores.entropy is not None:
            metrics["entropy"] = mean_of(scores.entropy)
        return LossOutput([Term(values, "completions")], metrics)


def completion_of(units: tuple[torch.Tensor, int], completions: tuple[torch.Tensor, int]) -> torch.Tensor:
    """The completion that each unit of tokens is a part of, (units,)."""
    return completions[0].new_zeros(units[1]).index_copy(0, units[0], completions[0])
