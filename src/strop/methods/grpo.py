"""GRPO and its family: policy gradient with a baseline from the group of completions of a prompt."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Any, ClassVar, Literal

import torch

from strop.device import read, wide
from strop.engine.step import completion_field, token_field
from strop.errors import ConfigError
from strop.losses import (
    PolicyOptions,
    adapt_entropy_coef,
    check_policy_options,
    entropy_bonus,
    entropy_threshold,
    group_advantages,
    mean_of,
    multi_reward_advantages,
    policy_loss_flat,
    policy_metrics,
    policy_term,
    sampler_metrics,
)
from strop.losses.names import POLICY_AGGREGATION
from strop.methods.policy_gradient import PolicyGradientTrainer, kept_tokens
from strop.metric import CLIPPING, LOSS, Entry
from strop.online.groups import Group
from strop.online.pieces import trajectory_of
from strop.records import Batch, LossOutput, Mean, Scores, StepContext, Term, Want
from strop.settings.off_policy import PolicyGradientConfig
from strop.settings.prerequisites import ABOVE_ZERO, Needs
from strop.settings.schema import Range, config

Positive = Annotated[float, Range(min=0, open_min=True)]


@config
class GRPOConfig(PolicyGradientConfig):
    """Settings of `GRPOTrainer`."""

    removed: ClassVar[dict[str, str]] = {
        **PolicyGradientConfig.removed,
        "cast_lm_head_to_fp32": "Logits are added up and normalised in float32 always; remove it.",
    }
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {**PolicyGradientConfig.neutral, "cast_lm_head_to_fp32": (True,)}

    needs: ClassVar[dict[str, Needs]] = {
        **PolicyGradientConfig.needs,
        "use_bias_correction_kl": Needs({"beta": ABOVE_ZERO}),
        "max_resampling_rounds": Needs({"dynamic_sampling": (True,)}),
        **dict.fromkeys(
            ("entropy_coef_min", "entropy_coef_max", "entropy_coef_delta", "entropy_target"),
            Needs({"use_adaptive_entropy": (True,)}),
        ),
        **dict.fromkeys(("sapo_temperature_pos", "sapo_temperature_neg"), Needs({"loss_type": ("sapo",)})),
        **dict.fromkeys(
            ("vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg"), Needs({"loss_type": ("vespo",)})
        ),
    }

    disable_dropout: bool = False
    """Set every dropout of the model to 0."""
    loss_type: Literal["grpo", "dapo", "dr_grpo", "bnpo", "cispo", "sapo", "luspo", "vespo"] = "dapo"
    """The policy term and how tokens are added up (see the table of `policy_loss`)."""
    importance_sampling_level: Literal["token", "sequence"] | None = None
    """Ratio of each token, or of the whole completion (GSPO). None: token, sequence for luspo."""
    epsilon: Annotated[float, Range(min=0)] = 0.2
    """Clip range below 1."""
    epsilon_high: Annotated[float, Range(min=0)] | None = None
    """Clip range above 1. None: epsilon (DAPO's clip-higher uses 0.28)."""
    delta: Annotated[float, Range(min=1)] | None = None
    """Upper bound of the ratio where the advantage is negative (two-sided clip). None: none."""
    cispo_cap: Literal["relative", "absolute"] = "relative"
    """CISPO's cap: 1 + epsilon_high as in the paper, or epsilon_high itself as TRL reads it."""
    use_bias_correction_kl: bool = True
    """Multiply the KL term by the ratio, so that it follows KL(policy || reference)."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """What advantages are divided by: std of the group, of the batch, or nothing (Dr. GRPO). True: group, False:
    none."""
    multi_objective_aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = "sum_then_normalize"
    """Several rewards: sum, then normalise; or normalise each, then sum (GDPO)."""
    dynamic_sampling: bool = False
    """Replace groups whose rewards are all equal by groups of further prompts (DAPO)."""
    max_resampling_rounds: Annotated[int, Range(min=1)] = 4
    """Most extra rounds of sampling that dynamic_sampling may take for one step."""
    top_entropy_quantile: Annotated[float, Range(min=0, max=1, open_min=True)] = 1.0
    """Learn from this share of tokens with the highest entropy only. 1: all."""
    entropy_coef: Annotated[float, Range(min=0)] = 0.0
    """Weight of an entropy bonus."""
    use_adaptive_entropy: bool = False
    """Let the entropy coefficient follow `entropy_target`."""
    entropy_coef_min: Annotated[float, Range(min=0)] = 0.0
    """Least adaptive coefficient."""
    entropy_coef_max: Annotated[float, Range(min=0)] = 1.0
    """Greatest adaptive coefficient."""
    entropy_coef_delta: Annotated[float, Range(min=0)] = 0.005
    """Change of the adaptive coefficient per step."""
    entropy_target: Annotated[float, Range(min=0)] = 0.2
    """Entropy (nats per token) that the adaptive coefficient holds."""
    off_policy_mask_threshold: float | None = None
    """Drop failed completions that drifted by more than this many nats per token. None: keep all."""
    sapo_temperature_pos: Positive = 1.0
    """Sharpness of SAPO's gate where the advantage is positive."""
    sapo_temperature_neg: Positive = 1.05
    """Sharpness of SAPO's gate where the advantage is negative."""
    vespo_k_pos: Positive = 2.0
    """VESPO's power where the advantage is positive."""
    vespo_lambda_pos: Positive = 3.0
    """VESPO's rate where the advantage is positive."""
    vespo_k_neg: Positive = 3.0
    """VESPO's power where the advantage is negative."""
    vespo_lambda_neg: Positive = 2.0
    """VESPO's rate where the advantage is negative."""

    def __post_init__(self) -> None:
        self.scale_rewards = {"true": "group", "false": "none"}.get(str(self.scale_rewards).lower(), self.scale_rewards)
        super().__post_init__()

    def contradictions(self) -> list[str]:
        problems = super().contradictions()
        if self.missing_eos_penalty and self.multi_objective_aggregation == "normalize_then_sum":
            problems.append(
                "missing_eos_penalty has no scale where each reward is normalised by itself; give it as a reward, or "
                "use multi_objective_aggregation='sum_then_normalize'."
            )
        if self.advantage_level == "turn":
            problems += self.unfit_for_turns()
        if self.num_generations < 2:
            problems.append("num_generations=1 leaves no group to compare with; set 2 or more.")
        if POLICY_AGGREGATION.get(self.loss_type) == "constant" and self.max_completion_length is None:
            problems.append(f"loss_type={self.loss_type!r} divides by max_completion_length; give it.")
        try:
            check_policy_options(**loss_options(self))
        except ConfigError as error:
            problems.append(str(error))
        return problems

    def looks_at_whole_step(self) -> dict[str, bool]:
        return {
            **super().looks_at_whole_step(),
            "dynamic_sampling": self.dynamic_sampling,
            "scale_rewards='batch'": self.scale_rewards == "batch",
            "multi_objective_aggregation='normalize_then_sum'": self.multi_objective_aggregation
            != "sum_then_normalize",
            "top_entropy_quantile": self.top_entropy_quantile < 1,
            "use_adaptive_entropy": self.use_adaptive_entropy,
            "entropy_coef": self.entropy_coef > 0,
        }

    @property
    def correction(self) -> dict[str, Any]:
        return PolicyOptions(**loss_options(self)).correction if self.corrects else {}

    def unfit_for_turns(self) -> list[str]:
        """What credit by turn has no meaning with."""
        problems = []
        if self.importance_sampling_level == "sequence" or self.loss_type == "luspo":
            problems.append(
                "advantage_level='turn': a ratio of the whole completion (importance_sampling_level='sequence', luspo) "
                "moves all turns by the advantage of each; use token ratios, or RLOO, whose ratios are then of turns."
            )
        if self.multi_objective_aggregation == "normalize_then_sum":
            problems.append(
                "advantage_level='turn' compares what is still to come of the sum of rewards; use "
                "multi_objective_aggregation='sum_then_normalize'."
            )
        return problems


LOSS_OPTIONS = {
    option.name: name
    for option in fields(PolicyOptions)
    for name in (option.name, f"vllm_{option.name}")
    if name in {setting.name for setting in fields(GRPOConfig)}
}
"""Option of the loss -> the setting that holds it; those of the sampler correction begin with `vllm_`."""


def loss_options(args: GRPOConfig) -> dict[str, Any]:
    """What the loss is told, as fields of `PolicyOptions`."""
    return {option: getattr(args, name) for option, name in LOSS_OPTIONS.items()}


class GRPOTrainer(PolicyGradientTrainer):
    """Group-relative policy optimisation: A_i = (R_i - mean of the group) / (std + 1e-4), then `policy_loss`.

    Rows: `prompt` and any columns that the rewards ask for. When each round of completions is used for one step, the
    ratio is 1 by construction and no forward pass for old log-probs is made; groups without any advantage cost none.
    Sources: arXiv 2402.03300; DAPO 2503.14476; Dr. GRPO 2503.20783; GSPO 2507.18071; CISPO 2506.13585; SAPO 2511.20347.
    Differs from the paper: KL off by default; `loss_type` dapo, a mean over all tokens of the step.
    """

    config_class = GRPOConfig
    glossary = (
        Entry("policy_loss", LOSS, "Policy part of the loss, without the entropy bonus.", "none", "as in loss_type"),
        Entry("entropy_coef", LOSS, "Current weight of the entropy bonus.", "none", "step"),
        Entry("cispo_clip_ratio", CLIPPING, "Share of tokens whose importance weight is capped.", "share", "token",
              high=0.3),
        Entry("vespo/phi_seq_mean", CLIPPING, "VESPO's mean sequence weight.", "none", "completion", healthy="near 1"),
    )  # fmt: skip

    def after_init(self) -> None:
        super().after_init()
        self.entropy_coef = self.args.entropy_coef
        if self.args.dynamic_sampling and not hasattr(self.train_dataset or [], "__len__"):
            raise ConfigError("dynamic_sampling=True draws further prompts from the rows; a stream keeps none.")

    @property
    def divided_by(self) -> str:
        return "tokens" if POLICY_AGGREGATION[self.args.loss_type] == "token_mean_global" else "completions"

    @property
    def coupled(self) -> bool:  # type: ignore[override]
        return self.args.top_entropy_quantile < 1 or self.args.use_adaptive_entropy

    @property
    def bonus(self) -> bool:
        """Whether the loss contains the entropy itself."""
        return self.args.entropy_coef > 0 or self.args.use_adaptive_entropy

    def want(self, log: bool) -> Want:
        return Want.LOGPS | Want.ENTROPY if log or self.coupled or self.bonus else Want.LOGPS

    def score_options(self) -> dict[str, Any]:
        return {**super().score_options(), "grad_entropy": self.bonus}

    @property
    def silent_groups_cost_nothing(self) -> bool:
        return not (self.args.beta or self.bonus or self.router_coef)

    def score_groups(self, groups: list[Group], mode: str) -> None:
        """Rewards of every completion; the penalty for a missing end, and the rewards of its turns, are two more
        columns of what is compared."""
        super().score_groups(groups, mode)
        penalty = self.args.missing_eos_penalty or 0.0
        for group in groups:
            ends = [-penalty * (reason != "stop") for reason in group.finish_reasons]
            turns = [sum(rewards) for rewards in group.turn_rewards or [[]] * len(ends)]
            columns = torch.tensor([ends, turns]).double().T
            columns[group.values.isnan().all(1)] = float("nan")
            group.shaped = torch.cat([group.values, columns], 1)

    def advantages(self, groups: list[Group]) -> torch.Tensor:
        weights = list(self.rewards.weights) if self.rewards else [1.0]
        return multi_reward_advantages(
            torch.cat([group.shaped for group in groups]),
            torch.tensor([*weights, 1.0, 1.0]),
            num_generations=len(groups[0].completions),
            scale=self.args.scale_rewards,
            aggregation=self.args.multi_objective_aggregation,
        )

    def compare(self, totals: torch.Tensor, size: int) -> torch.Tensor:
        return group_advantages(totals, num_generations=size, scale=self.args.scale_rewards)

    @property
    def advantages_need_all_ranks(self) -> bool:
        return self.args.scale_rewards == "batch" or self.args.multi_objective_aggregation == "normalize_then_sum"

    def statistics(self, scores: Scores, batch: Batch, step: StepContext) -> dict[str, torch.Tensor]:
        return {"entropy": scores.entropy.detach()}

    def reduce_statistics(self, values: dict[str, torch.Tensor], training: bool) -> dict[str, Any]:
        entropy, args = values["entropy"], self.args
        coef = following = self.entropy_coef
        if args.use_adaptive_entropy:
            mean = wide(entropy.mean() if entropy.numel() else entropy.new_zeros(()))
            coef = (self.entropy_coef * wide(mean <= args.entropy_target)).to(entropy.dtype)
            bounds = {"minimum": args.entropy_coef_min, "maximum": args.entropy_coef_max}
            following = adapt_entropy_coef(
                self.entropy_coef, mean, target=args.entropy_target, step=args.entropy_coef_delta, **bounds
            )
        threshold = entropy_threshold(entropy, top_quantile=args.top_entropy_quantile)
        return {"threshold": threshold, "coef": coef, "next_coef": following}

    def advance(self, statistics: dict[str, Any]) -> None:
        self.entropy_coef = statistics["next_coef"]

    def loss(self, scores: Scores, batch: Batch, step: StepContext) -> LossOutput:
        args, dtype = self.args, scores.logps.dtype
        if self.by_turn:
            advantages = token_field(batch, "token_advantages").to(dtype)  # (N,)
        else:
            advantages = completion_field(batch, "advantages", dtype=dtype)[scores.segment]  # (N,)
        sampler_logps = token_field(batch, "sampler_logps").to(dtype)  # (N,)
        old_logps = self.old_logps(scores, batch)
        completions = trajectory_of(batch)
        given = (scores.logps, old_logps, advantages, *completions)
        options = {**loss_options(args), "ref_logps": step.ref.logps if step.ref is not None else None}
        share, drift = args.top_entropy_quantile, args.off_policy_mask_threshold
        keep = kept_tokens(scores, batch, advantages, share, step.statistics.get("threshold"), drift)
        values = policy_loss_flat(*given, sampler_logps=sampler_logps if args.corrects else None, keep=keep, **options)
        sums = {"aggregation": POLICY_AGGREGATION[args.loss_type], "max_completion_length": args.max_completion_length}
        terms = [policy_term(values, *completions, **sums)]
        metrics = policy_metrics(*given, **options)
        start = scores.logps.detach() if old_logps is None else old_logps
        metrics |= sampler_metrics(start, sampler_logps, *completions, **args.correction)
        if scores.entropy is not None:
            metrics["entropy"] = mean_of(scores.entropy)
            if self.bonus:
                coef = step.statistics.get("coef", args.entropy_coef)
                terms.append(Term(entropy_bonus(scores.entropy), "tokens", coef))
                metrics |= {"policy_loss": share_of(terms[0], scores), "entropy_coef": Mean(coef, 1.0)}
        return LossOutput(terms, metrics)

    def extra_state(self) -> dict[str, Any]:
        return {**super().extra_state(), "entropy_coef": read([self.entropy_coef])[0]}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        super().load_extra_state(state)
        self.entropy_coef = state["entropy_coef"]


def share_of(term: Term, scores: Scores) -> Mean:
    """A term of this micro-batch, so that the means of a step's micro-batches add up to the step's term."""
    count = len(scores.segment) if term.per == "tokens" else scores.num_completions
    return Mean(term.weight * term.values.detach().sum(), float(count))
