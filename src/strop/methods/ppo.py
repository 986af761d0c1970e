"""PPO: policy gradient with a learned critic, clipped, with a KL penalty on every token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch

from strop.collectives import sum_over_ranks
from strop.engine.checkpoint import without_progress_bars
from strop.engine.parts import Facts, resolve_model
from strop.engine.step import completion_field, token_field, token_lists
from strop.errors import ConfigError, SetupError
from strop.losses import (
    gae_flat,
    kl_estimate,
    mean_of,
    moments,
    policy_loss_flat,
    ppo_metrics,
    segment_sum,
    token_rewards_flat,
    value_loss,
    whiten,
)
from strop.metric import CLIPPING, COMPLETIONS, CRITIC, DRIFT, LOSS, PROGRESS, TOKENS, Entry
from strop.model import as_to_save, base_model, disable_dropout, lm_head_of
from strop.model.actor_critic import VALUE_FOLDER, ActorCritic, critic_like, score_both
from strop.model.forward import vocab_size
from strop.online.batches import BatchSizes
from strop.online.evaluation_samples import EvaluationSamples
from strop.online.groups import Group
from strop.online.pieces import one_each, trajectory_of
from strop.online.sampled_distribution import changes_distribution, rescore
from strop.online.sampler_check import sampler_gap
from strop.online.trainer import OnlineTrainer
from strop.records import Batch, Example, Extreme, LossOutput, Mean, Sampled, Scores, StepContext, Term, Want
from strop.settings import earlier
from strop.settings.off_policy import OffPolicyConfig
from strop.settings.schema import Range, config
from strop.watch.samples import show_samples


@config
class PPOConfig(OffPolicyConfig):
    """Settings of `PPOTrainer`."""

    headline: ClassVar[tuple[str, ...]] = ("reward", "objective/kl")
    aliases: ClassVar[dict[str, str]] = {**OffPolicyConfig.aliases, **earlier.PPO_ALIASES}
    removed: ClassVar[dict[str, str]] = {**OffPolicyConfig.removed, **earlier.PPO_REMOVED}
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {**OffPolicyConfig.neutral, **earlier.PPO_NEUTRAL}
    unused: ClassVar[dict[str, str]] = {
        **OffPolicyConfig.unused,
        "advantage_level": "The critic gives each token an advantage of its own; remove it.",
        "steps_per_generation": "Use num_mini_batches, the optimizer steps that one pass over a round takes.",
        "generation_batch_size": "A round has per_device_train_batch_size x gradient_accumulation_steps x "
        "num_mini_batches completions.",
    }

    learning_rate: Annotated[float, Range(min=0)] = 3e-6
    """Peak learning rate of AdamW, for policy and critic."""
    num_generations: Annotated[int, Range(min=1)] = 1
    max_completion_length: Annotated[int, Range(min=1)] | None = 53
    temperature: Annotated[float, Range(min=0, open_min=True)] = 0.7
    beta: Annotated[float, Range(min=0)] = 0.05
    """Weight of the KL penalty on each token (kl_coef)."""
    num_iterations: Annotated[int, Range(min=1)] = 4
    """Times that each round of completions is learned from (num_ppo_epochs)."""
    num_mini_batches: Annotated[int, Range(min=1)] = 1
    """Optimizer steps that one pass over a round takes."""
    total_episodes: Annotated[int, Range(min=1)] | None = None
    """Completions to sample in all; another way to give max_steps."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    """Estimator of the KL in the reward (and of `objective/kl`)."""
    whiten_rewards: bool = False
    """Give token rewards unit variance over the round; their mean stays."""
    cliprange: Annotated[float, Range(min=0, open_min=True)] = 0.2
    """Clip range of the policy's ratio."""
    cliprange_value: Annotated[float, Range(min=0, open_min=True)] | None = 0.2
    """Clip range of the critic's values. None: none."""
    vf_coef: Annotated[float, Range(min=0)] = 0.1
    """Weight of the critic's loss."""
    gamma: Annotated[float, Range(min=0, max=1)] = 1.0
    """Discount per token."""
    lam: Annotated[float, Range(min=0, max=1)] = 0.95
    """Generalised advantage estimation: 1 is the return, 0 the one-step error."""
    sft_model_path: str | None = None
    """Policy by id or folder, for a trainer that is given no model."""
    reward_model_path: str | None = None
    """Reward model by id or folder, for a trainer that is given no reward_funcs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.total_episodes is not None and self.max_steps < 0:
            per_step = self.per_device_train_batch_size * self.gradient_accumulation_steps * self.world_size
            self.max_steps = max(1, round(self.total_episodes * self.num_iterations / per_step))


def with_critic(args: Any, given: Any, policy: Any) -> ActorCritic:
    """The policy with its critic beside it: the one `given`, or one with the policy's layers."""
    if given is not None:
        return ActorCritic(policy, resolve_model(args, given, "score", None, None))
    critic = critic_like(policy)
    if args.disable_dropout:
        disable_dropout(critic)
    return ActorCritic(policy, critic)


class PPOTrainer(OnlineTrainer):
    """Proximal policy optimisation with a critic and GAE.

    Token reward: -beta KL_t, and the score on the last real token. Advantages by GAE, whitened over the whole round of
    all ranks. L = mean over tokens of max(-A r, -A clip(r)) + vf_coef / 2 max((V - G)^2, (V_clip - G)^2).
    `value_model` starts the critic (default: a fresh head on a copy of the policy's layers, and of its adapter where it
    has one); both are trained by one optimizer, saved together (the critic in `value_model/`) and resumed together.
    Where older weights (`max_staleness`) or vLLM wrote the completions, the policy term has the weight pi_old /
    pi_sampler, bounded as in GRPO; pi_old is the policy when the round is taken, around which ratios are clipped, and
    whose are log-probs, values, KL and GAE. The critic learns without weights, from what was sampled: no V-trace.
    Rows: `prompt`.
    Sources: arXiv 1707.06347 Eqs. 7 and 9; GAE 1506.02438; KL in the reward 1909.08593; decoupled clipping 2110.00641,
    2505.24298.
    Differs from TRL: the score sits on the last token, not one step after it; whitening sees all ranks.
    """

    config_class = PPOConfig
    glossary: ClassVar[tuple[Entry, ...]] = (
        Entry("loss", LOSS, "Policy loss plus weighted value loss.", "none", "token", healthy="watch objective/scores"),
        Entry("loss/policy_avg", LOSS, "Clipped policy loss.", "none", "token", healthy="small and negative"),
        Entry("policy/approxkl_avg", DRIFT, "Half the mean squared change of log-probabilities within the update.",
              "nats", "token", high=0.05, advice="High: fewer epochs per batch, or a lower learning rate."),
        Entry("policy/entropy_avg", TOKENS, "Entropy of the policy's distribution.", "nats", "token",
              healthy="falls slowly"),
        Entry("val/num_eos_tokens", COMPLETIONS, "End tokens among the sampled tokens.", "tokens", "batch"),
        Entry("policy/clipfrac_avg", CLIPPING, "Share of tokens where the clipped objective is the binding one.",
              "share", "token", high=0.3),
        Entry("val/ratio", CLIPPING, "Importance ratio new / old policy.", "ratio", "token", low=0.9, high=1.1,
              healthy="1 at the first update"),
        Entry("val/ratio_var", CLIPPING, "Variance of that ratio.", "ratio^2", "token", healthy="near 0"),
        Entry("loss/value_avg", CRITIC, "Half the squared error of the critic.", "reward^2", "token", healthy="falls",
              advice="Rises: lower the learning rate, raise vf_coef, or whiten rewards."),
        Entry("val/clipfrac_avg", CRITIC, "Share of tokens whose value update is clipped.", "share", "token", high=0.3),
        Entry("episode", PROGRESS, "Completions sampled so far.", "completions", "sum over the run"),
        Entry("eps", PROGRESS, "Completions sampled per second.", "1/s", "interval between logs"),
    )  # fmt: skip
    reference_in_loss = False
    can_fork = True

    def __init__(
        self,
        model: Any = None,
        ref_model: Any = None,
        reward_funcs: Any = None,
        args: PPOConfig | None = None,
        value_model: Any = None,
        **kwargs: Any,
    ) -> None:
        model = args.sft_model_path if model is None and isinstance(args, PPOConfig) else model
        super().__init__(model, reward_funcs, args, ref_model=ref_model, given={"critic": value_model}, **kwargs)

    @classmethod
    def facts(cls, args: Any, given: Mapping[str, Any]) -> Facts:
        return replace(super().facts(args, given), complete_model=partial(with_critic, args, given.get("critic")))

    def after_init(self) -> None:
        super().after_init()
        known, tokens = vocab_size(self.model.critic), len(self.processing_class)
        if known is not None and known < tokens:
            raise SetupError(
                f"value_model embeds {known} tokens and the tokenizer has {tokens}. Give one with the policy's tokens, "
                "or none: the critic then starts from the policy's layers."
            )

    @property
    def policy(self) -> Any:
        return super().policy.policy

    @property
    def sizes(self) -> BatchSizes:
        return replace(super().sizes, fresh_steps=self.args.num_mini_batches)

    def build_want(self) -> Want:
        return Want.LOGPS | Want.VALUE

    def score(self, model: torch.nn.Module, batch: Batch, log: bool) -> Scores:
        params = self.sampling(training=True)
        options = {**self.score_options(), **self.training_options()}
        if not changes_distribution(params):
            return self.in_one_precision(score_both, model, batch, self.want(log), **options)
        scores = self.in_one_precision(score_both, model, batch, self.want(log) | Want.HIDDEN, **options)
        head = lm_head_of(base_model(self.policy))
        return rescore(scores, head, batch, params, head_bytes=self.head_bytes)

    # ---- what the update learns from --------------------------------------------------------------------------

    def make_trees(self, groups: list[Group], training: bool) -> list[Example]:
        trees = [tree for index, group in enumerate(groups) for tree in self.trees(group, index)]
        ended = float(sum(reason == "stop" for group in groups for reason in group.finish_reasons))
        per_round = {"val/num_eos_tokens": Mean(ended, 1 / self.args.world_size)}
        self._metrics["train" if training else "eval"].add(per_round)
        own = self.plan(trees, self.args.train_batch_size)
        for index, part in enumerate([*own, *self.fillers(own)]):
            self.add_token_rewards(part, training, counts=index < len(own))
        if self.args.whiten_rewards:
            self.whiten(trees, "token_rewards", shift_mean=False)
        self.add_advantages(trees)
        self.whiten(trees, "token_advantages", shift_mean=True)
        return trees

    def trees(self, group: Group, index: int) -> list[Example]:
        """The rewarded completions of a group; those that every reward abstained from are not learned from."""
        keep = [i for i, known in enumerate(~group.rewards.isnan()) if known]
        if not keep:
            return []
        said, totals = [group.sampler_logps[i] for i in keep], group.rewards[keep].tolist()
        told = Sampled(index, totals=totals, sampler_logps=said, version=group.version)
        return [piece for tree in self.trees_of(group, told, keep) for piece in self.pieces(tree)]

    @torch.no_grad()
    def add_token_rewards(self, part: list[Example], training: bool, counts: bool = True) -> None:
        """Old log-probs, values and rewards of every token, from the policy, critic and reference as they are now."""
        batch = self.build(part)
        with self.compute_loss_context_manager():
            scores = self.score(super().policy, batch, False)
        kl = torch.zeros_like(scores.logps)
        if self.reference_scores is not None:
            ref = self.reference_scores(batch).logps
            kl = kl_estimate(scores.logps, ref, estimator=self.args.kl_estimator)  # type: ignore[arg-type]
        if not counts:
            return
        completions = trajectory_of(batch)
        totals = one_each(completion_field(batch, "totals", dtype=kl.dtype), batch)  # (trajectories,)
        rewards = token_rewards_flat(kl, totals, *completions, kl_coef=self.args.beta)
        token_lists(batch, old_logps=scores.logps, old_values=scores.values, token_rewards=rewards)
        whole = segment_sum(torch.stack((kl, -scores.logps), 1), *completions)  # (trajectories, 2)
        penalty = -self.args.beta * whole[:, 0]
        metrics = {
            "objective/kl": mean_of(whole[:, 0]),
            "objective/entropy": mean_of(whole[:, 1]),
            "objective/non_score_reward": mean_of(penalty),
            "objective/rlhf_reward": mean_of(totals.to(penalty) + penalty),
            "objective/scores": mean_of(totals),
        }
        self._metrics["train" if training else "eval"].add(
            metrics | sampler_gap(scores.logps, batch, **self.args.correction)
        )

    def add_advantages(self, trees: list[Example]) -> None:
        """GAE over each completion, through all stretches of a conversation that the template rewrote on the way;
        `token_advantages` and `returns` of every token."""
        for part in self.plan(trees, self.args.train_batch_size):
            batch = self.build(part)
            rewards, values = (token_field(batch, name, "cpu") for name in ("token_rewards", "old_values"))
            options = {"gamma": self.args.gamma, "lam": self.args.lam}
            advantages, returns = gae_flat(rewards, values, *trajectory_of(batch, "cpu"), **options)
            token_lists(batch, token_advantages=advantages, returns=returns)

    def whiten(self, trees: list[Example], name: str, *, shift_mean: bool) -> None:
        """Whiten a per-token field over the round of all ranks; masked tokens neither count nor change."""
        batches = [self.build(part) for part in self.plan(trees, self.args.train_batch_size)]
        flat = [token_field(batch, name, "cpu") for batch in batches]
        own = moments(torch.cat(flat)).tolist() if flat else [0.0] * 3
        sums = sum_over_ranks(dict(zip(("count", "total", "squares"), own, strict=True)), self.args.world_size)
        statistics = torch.tensor(list(sums.values()), dtype=torch.float64)
        for batch, values in zip(batches, flat, strict=True):
            whitened = whiten(values, shift_mean=shift_mean, statistics=statistics)
            token_lists(batch, **{name: whitened})

    def loss(self, scores: Scores, batch: Batch, step: StepContext) -> LossOutput:
        names = ("old_logps", "token_advantages", "old_values", "returns")
        old_logps, advantages, old_values, returns = (token_field(batch, name).to(scores.logps.dtype) for name in names)
        weigh = {f"importance_sampling_{name}": bound for name, bound in self.args.correction.items()}
        policy = policy_loss_flat(
            scores.logps, old_logps, advantages, *trajectory_of(batch), epsilon=self.args.cliprange,
            sampler_logps=token_field(batch, "sampler_logps").to(old_logps) if weigh else None, **weigh,
        )  # fmt: skip
        critic = value_loss(scores.values, old_values, returns, clip=self.args.cliprange_value)
        moved = (scores.logps, old_logps, advantages, scores.values, old_values, returns)
        clip = {"cliprange": self.args.cliprange, "cliprange_value": self.args.cliprange_value}
        metrics = ppo_metrics(*moved, **clip)
        metrics |= {"loss/policy_avg": mean_of(policy), "loss/value_avg": mean_of(critic)}
        if scores.entropy is not None:
            metrics["policy/entropy_avg"] = mean_of(scores.entropy)
        metrics["episode"] = Extreme(float(self.rounds * self.sizes.completions * self.sizes.fresh_steps))
        return LossOutput([Term(policy, "tokens"), Term(critic, "tokens", self.args.vf_coef)], metrics)

    def derived_metrics(self, metrics: dict[str, float]) -> dict[str, float]:
        """`val/ratio_var` from the mean square, and `eps`, completions per second, from the time of a step."""
        if (square := metrics.pop("val/ratio_square", None)) is not None:
            metrics["val/ratio_var"] = max(square - metrics["val/ratio"] ** 2, 0.0)
        if seconds := metrics.get("step_time"):
            metrics["eps"] = self.sizes.completions / self.args.num_iterations / seconds
        return metrics

    def generate_completions(self, sampling: bool = False) -> None:
        """A completion of every evaluation prompt with its reward, as a table and into samples.jsonl.

        `sampling`: of the first batch alone.
        """
        samples = EvaluationSamples(self)
        most = self.args.per_device_eval_batch_size if sampling else None
        groups = self.rollout(list(islice(samples.prompts(), most)), 1, training=False)
        if not groups:
            raise ConfigError("There are no prompts to complete: give the trainer eval_dataset=.")
        self.score_groups(groups, "eval")
        self._metrics["eval"].drain(world_size=self.args.world_size)
        if self.is_world_process_zero():
            shown = samples.write(groups)
            show_samples(shown, len(shown))

    # ---- saving and resuming both -----------------------------------------------------------------------------

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            both = super().policy
            with without_progress_bars(), as_to_save(both):
                both.save(folder, self.processing_class, getattr(self.reference, "adapter_names", None), state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with self.gathered(put_back=True):
            both = super().policy
            super()._load_from_checkpoint(resume_from_checkpoint, both.policy)
            if VALUE_FOLDER in getattr(both.policy, "peft_config", {}):  # taken for the policy's second one there
                both.policy.delete_adapter(VALUE_FOLDER)
            super()._load_from_checkpoint(str(Path(resume_from_checkpoint) / VALUE_FOLDER), both.critic)
