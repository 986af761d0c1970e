"""Settings of GRPO and its family."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from strop.errors import ConfigError
from strop.losses import check_policy_options
from strop.trainers.online_config import VLLM, OnlineConfig
from strop.trainers.prerequisites import ABOVE_ZERO, Needs
from strop.trainers.schema import Range, config

Positive = Annotated[float, Range(min=0, open_min=True)]
CORRECTED = {"vllm_importance_sampling_correction": (True,)}


@config
class GRPOConfig(OnlineConfig):
    """Settings of `GRPOTrainer`."""

    aliases: ClassVar[dict[str, str]] = {
        **OnlineConfig.aliases,
        "vllm_importance_sampling_cap": "vllm_importance_sampling_clip_max",
    }
    removed: ClassVar[dict[str, str]] = {
        **OnlineConfig.removed,
        "cast_lm_head_to_fp32": "Logits are added up and normalised in float32 always; remove it.",
    }

    needs: ClassVar[dict[str, Needs]] = {
        **OnlineConfig.needs,
        "use_bias_correction_kl": Needs({"beta": ABOVE_ZERO}),
        "max_resampling_rounds": Needs({"dynamic_sampling": (True,)}),
        **dict.fromkeys(
            ("entropy_coef_min", "entropy_coef_max", "entropy_coef_delta", "entropy_target"),
            Needs({"use_adaptive_entropy": (True,)}),
        ),
        "vllm_importance_sampling_correction": VLLM,
        "vllm_importance_sampling_mode": Needs(CORRECTED, elsewhere=("sequence_mask",)),
        "vllm_importance_sampling_clip_max": Needs(CORRECTED, elsewhere=(2.0, None)),
        "vllm_importance_sampling_clip_min": Needs(CORRECTED),
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
    scale_rewards: Literal["group", "batch", "none"] | bool = "group"
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
    vllm_importance_sampling_correction: bool = True
    """Correct for a rollout engine whose probabilities differ from the policy's (vllm engine)."""
    vllm_importance_sampling_mode: (
        Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"] | None
    ) = None
    """How. None: sequence_mask, token_truncate for vespo."""
    vllm_importance_sampling_clip_max: Annotated[float, Range(min=0)] | None = 3.0
    """Upper bound of the correction's weight."""
    vllm_importance_sampling_clip_min: Annotated[float, Range(min=0)] | None = None
    """Lower bound of the correction's weight."""
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
        if isinstance(self.scale_rewards, bool):
            self.scale_rewards = "group" if self.scale_rewards else "none"
        super().__post_init__()

    def contradictions(self) -> list[str]:
        problems = super().contradictions()
        if self.missing_eos_penalty and self.multi_objective_aggregation == "normalize_then_sum":
            problems.append(
                "missing_eos_penalty has no scale where each reward is normalised by itself; give it as a reward, or "
                "use multi_objective_aggregation='sum_then_normalize'."
            )
        if self.num_generations < 2:
            problems.append("num_generations=1 leaves no group to compare with; set 2 or more.")
        try:
            check_policy_options(
                self.loss_type,
                importance_sampling_level=self.importance_sampling_level,
                epsilon=self.epsilon,
                epsilon_high=self.epsilon_high,
                delta=self.delta,
                importance_sampling_mode=self.vllm_importance_sampling_mode,
                cispo_cap=self.cispo_cap,
            )
        except ConfigError as error:
            problems.append(str(error))
        return problems
