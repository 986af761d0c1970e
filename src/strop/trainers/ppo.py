"""PPO: policy gradient with a learned critic, clipped, with a KL penalty on every token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from strop.losses import (
    gae_flat,
    kl_estimate,
    mean_of,
    moments,
    policy_loss_flat,
    ppo_metrics,
    token_rewards_flat,
    value_loss,
    whiten,
)
from strop.model import base_model, disable_dropout, lm_head_of
from strop.records import Batch, Example, Extreme, LossOutput, Mean, Scores, Term, Want
from strop.trainers import setup
from strop.trainers.actor_critic import VALUE_FOLDER, ActorCritic, critic_like, score_both
from strop.trainers.checkpoint import without_progress_bars
from strop.trainers.groups import Group
from strop.trainers.online import OnlineTrainer
from strop.trainers.ppo_config import PPOConfig
from strop.trainers.sampled_distribution import changes_distribution, rescore
from strop.trainers.step import StepContext, token_field, token_lists


class PPOTrainer(OnlineTrainer):
    """Proximal policy optimisation with a critic and GAE.

    Token reward: -beta KL_t, and the score on the last real token. Advantages by GAE, whitened over the whole round of
    all ranks. L = mean over tokens of max(-A r, -A clip(r)) + vf_coef / 2 max((V - G)^2, (V_clip - G)^2).
    `value_model` starts the critic (default: a fresh head on a copy of the policy's layers, and of its adapter where it
    has one); both are trained by one optimizer, saved together (the critic in `value_model/`) and resumed together.
    Rows: `prompt`.
    Sources: arXiv 1707.06347 Eqs. 7 and 9; GAE 1506.02438; KL in the reward 1909.08593.
    Differs from TRL: the score sits on the last token, not one step after it; whitening sees all ranks.
    """

    config_class = PPOConfig
    reference_in_loss = False

    def __init__(
        self,
        model: Any = None,
        ref_model: Any = None,
        reward_funcs: Any = None,
        args: PPOConfig | None = None,
        value_model: Any = None,
        **kwargs: Any,
    ) -> None:
        self._critic_source = value_model
        super().__init__(model, reward_funcs, args, ref_model=ref_model, **kwargs)

    def complete_model(self, model: Any) -> ActorCritic:
        """The policy with its critic beside it."""
        if self._critic_source is None:
            critic = critic_like(model)
            if self.args.disable_dropout:
                disable_dropout(critic)
        else:
            critic = setup.resolve_model(self.args, self._critic_source, "score", None, None)
        return ActorCritic(model, critic)

    @property
    def policy(self) -> Any:
        return self.accelerator.unwrap_model(self.model).policy

    @property
    def fresh_steps(self) -> int:
        return self.args.num_mini_batches

    def build_want(self) -> Want:
        return Want.LOGPS | Want.VALUE

    def score(self, model: torch.nn.Module, batch: Batch, log: bool) -> Scores:
        params = self.sampling(training=True)
        options = {**self.score_options(), "aux_loss": bool(self.args.router_aux_loss_coef) and model.training}
        if not changes_distribution(params):
            return score_both(model, batch, self.want(log), **options)
        scores = score_both(model, batch, self.want(log) | Want.HIDDEN, **options)
        head = lm_head_of(base_model(self.policy))
        return rescore(scores, head, batch, params, head_bytes=self.head_bytes)

    # ---- what the update learns from --------------------------------------------------------------------------

    def make_trees(self, groups: list[Group], training: bool) -> list[Example]:
        trees = [tree for index, group in enumerate(groups) for tree in self.trees(group, index)]
        ended = float(sum(reason == "stop" for group in groups for reason in group.finish_reasons))
        per_round = {"val/num_eos_tokens": Mean(ended, 1 / self.args.world_size)}
        self._metrics["train" if training else "eval"].add(per_round)
        for part in self.plan(trees, self._train_batch_size):
            self.add_token_rewards(part, training)
        if self.args.whiten_rewards:
            self.whiten(trees, "rewards", shift_mean=False)
        self.add_advantages(trees)
        self.whiten(trees, "advantages", shift_mean=True)
        return trees

    def trees(self, group: Group, index: int) -> list[Example]:
        """The rewarded completions of a group; those that every reward abstained from are not learned from."""
        assert group.rewards is not None
        keep = [i for i, known in enumerate(~group.rewards.isnan()) if known]
        if not keep:
            return []
        extras = {"scores": group.rewards[keep].tolist(), "prompt_index": index}
        return self.pieces(group.tree(keep, drop_truncated=self.args.mask_truncated_completions, extras=extras))

    @torch.no_grad()
    def add_token_rewards(self, part: list[Example], training: bool) -> None:
        """Old log-probs, values and rewards of every token, from the policy, critic and reference as they are now."""
        batch = self.build(part)
        with self.compute_loss_context_manager():
            scores = self.score(self.accelerator.unwrap_model(self.model), batch, False)
        assert scores.logps is not None and scores.values is not None
        kl = torch.zeros_like(scores.logps)
        if self.reference_scores is not None:
            ref = self.reference_scores(batch).logps
            kl = kl_estimate(scores.logps, ref, estimator=self.args.kl_estimator)  # type: ignore[arg-type]
        totals = torch.tensor([s for e in part for s in e.extras["scores"]], dtype=kl.dtype, device=kl.device)
        rewards = token_rewards_flat(kl, totals, scores.segment, scores.num_completions, kl_coef=self.args.beta)
        for name, values in (("old_logps", scores.logps), ("old_values", scores.values), ("rewards", rewards)):
            token_lists(batch, name, values)
        penalty = -self.args.beta * scores.sum(kl)
        self._metrics["train" if training else "eval"].add(
            {
                "objective/kl": mean_of(scores.sum(kl)),
                "objective/entropy": mean_of(-scores.sum()),
                "objective/non_score_reward": mean_of(penalty),
                "objective/rlhf_reward": mean_of(totals.to(penalty) + penalty),
                "objective/scores": mean_of(totals),
            }
        )

    def add_advantages(self, trees: list[Example]) -> None:
        """GAE over each completion; `advantages` and `returns` of every token."""
        for part in self.plan(trees, self._train_batch_size):
            batch = self.build(part)
            rewards, values = token_field(batch, "rewards"), token_field(batch, "old_values")
            options = {"gamma": self.args.gamma, "lam": self.args.lam}
            estimated = gae_flat(rewards, values, batch.segment, batch.num_completions, **options)
            for name, values in zip(("advantages", "returns"), estimated, strict=True):
                token_lists(batch, name, values)

    def whiten(self, trees: list[Example], name: str, *, shift_mean: bool) -> None:
        """Whiten a per-token extra over the round of all ranks; masked tokens neither count nor change."""
        batches = [self.build(part) for part in self.plan(trees, self._train_batch_size)]
        flat = [token_field(batch, name) for batch in batches]
        statistics = moments(torch.cat(flat)) if flat else torch.zeros(3, dtype=torch.float64)
        if self.args.world_size > 1:
            statistics = statistics.to(self.args.device)
            torch.distributed.all_reduce(statistics)
        for batch, values in zip(batches, flat, strict=True):
            token_lists(batch, name, whiten(values, shift_mean=shift_mean, statistics=statistics.to(values.device)))

    def loss(self, scores: Scores, batch: Batch, step: StepContext) -> LossOutput:
        assert scores.logps is not None and scores.values is not None
        names = ("old_logps", "advantages", "old_values", "returns")
        old_logps, advantages, old_values, returns = (token_field(batch, name).to(scores.logps.dtype) for name in names)
        policy = policy_loss_flat(
            scores.logps, old_logps, advantages, scores.segment, scores.num_completions, epsilon=self.args.cliprange
        )
        critic = value_loss(scores.values, old_values, returns, clip=self.args.cliprange_value)
        moved = (scores.logps, old_logps, advantages, scores.values, old_values, returns)
        clip = {"cliprange": self.args.cliprange, "cliprange_value": self.args.cliprange_value}
        metrics = ppo_metrics(*moved, **clip)
        metrics |= {"loss/policy_avg": mean_of(policy), "loss/value_avg": mean_of(critic)}
        if scores.entropy is not None:
            metrics["policy/entropy_avg"] = mean_of(scores.entropy)
        metrics["episode"] = Extreme(float(self.rounds * self.completions_per_step * self.fresh_steps))
        return LossOutput([Term(policy, "tokens"), Term(critic, "tokens", self.args.vf_coef)], metrics)

    def derived_metrics(self, metrics: dict[str, float]) -> dict[str, float]:
        """`val/ratio_var` from the mean square, and `eps`, completions per second, from the time of a step."""
        if (square := metrics.pop("val/ratio_square", None)) is not None:
            metrics["val/ratio_var"] = max(square - metrics["val/ratio"] ** 2, 0.0)
        if seconds := metrics.get("step_time"):
            metrics["eps"] = self.completions_per_step / self.args.num_iterations / seconds
        return metrics

    # ---- saving and resuming both -----------------------------------------------------------------------------

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            with without_progress_bars():
                both = self.accelerator.unwrap_model(self.model)
                both.save(folder, selected_adapters=getattr(self.reference, "adapter_names", None))
            self.processing_class.save_pretrained(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        both = self.accelerator.unwrap_model(self.model)
        super()._load_from_checkpoint(resume_from_checkpoint, both.policy)
        if VALUE_FOLDER in getattr(both.policy, "peft_config", {}):  # the parent takes it for the policy's second one
            both.policy.delete_adapter(VALUE_FOLDER)
        super()._load_from_checkpoint(str(Path(resume_from_checkpoint) / VALUE_FOLDER), both.critic)
