"""Pure losses of all fifteen methods: tensors and numbers in, unreduced values out.

No loss sees a model, a tokenizer or a config, and none divides by a batch: `step_loss` does. Names are loaded on
first use, so that `strop.losses.names` can be imported without torch.

    sft       nll_loss, dft_loss                    reward    reward_loss
    dpo       dpo_loss, wpo_weights, ld_logps       prm       stepwise_loss
    kto       kto_loss, kto_reference_point         ppo       policy_loss, value_loss, gae, token_rewards, whiten
    orpo      orpo_loss                             grpo      policy_loss, group_advantages
    cpo       cpo_loss, contrastive_hidden_loss     rloo      rloo_loss, leave_one_out
    bco       bco_loss, ema_balanced                nash-md   nash_md_loss, geometric_mixture_logps
    xpo       xpo_loss                              gkd       jsd_loss, fused_jsd
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from strop.lazy import on_first_use

if TYPE_CHECKING:
    from strop.losses.advantages import *  # noqa: F403
    from strop.losses.aot import *  # noqa: F403
    from strop.losses.bco import *  # noqa: F403
    from strop.losses.contrastive import *  # noqa: F403
    from strop.losses.cpo import *  # noqa: F403
    from strop.losses.dpo import *  # noqa: F403
    from strop.losses.entropy import *  # noqa: F403
    from strop.losses.jsd import *  # noqa: F403
    from strop.losses.kl import *  # noqa: F403
    from strop.losses.kto import *  # noqa: F403
    from strop.losses.ld_dpo import *  # noqa: F403
    from strop.losses.metrics import *  # noqa: F403
    from strop.losses.names import *  # noqa: F403
    from strop.losses.nash_md import *  # noqa: F403
    from strop.losses.nll import *  # noqa: F403
    from strop.losses.orpo import *  # noqa: F403
    from strop.losses.policy import *  # noqa: F403
    from strop.losses.policy_options import *  # noqa: F403
    from strop.losses.ppo import *  # noqa: F403
    from strop.losses.reduce import *  # noqa: F403
    from strop.losses.reward import *  # noqa: F403
    from strop.losses.rloo import *  # noqa: F403
    from strop.losses.sampler_correction import *  # noqa: F403
    from strop.losses.segments import *  # noqa: F403
    from strop.losses.stepwise import *  # noqa: F403
    from strop.losses.wpo import *  # noqa: F403
    from strop.losses.xpo import *  # noqa: F403

EXPORTS: dict[str, tuple[str, ...]] = {
    "advantages": (
        "group_advantages",
        "leave_one_out",
        "missing_eos_penalty",
        "multi_reward_advantages",
        "normalize_advantages",
        "returns_by_turn",
        "rloo_rewards",
        "weighted_rewards",
    ),
    "aot": ("AOTPartners", "aot_loss", "aot_partners"),
    "bco": (
        "BalancedMean",
        "ClassSums",
        "PooledMean",
        "bco_loss",
        "class_sums",
        "cumulative_pooled",
        "density_ratio_weights",
        "discriminator_loss",
        "ema_balanced",
    ),
    "contrastive": ("contrastive_hidden_loss", "pool_hidden"),
    "cpo": ("check_cpo_options", "cpo_loss", "cpo_score"),
    "dpo": ("check_dpo_options", "dpo_loss", "f_divergence_score"),
    "entropy": ("adapt_entropy_coef", "entropy_bonus", "entropy_threshold", "top_entropy_mask"),
    "jsd": ("fused_jsd", "jsd_loss"),
    "kl": ("kl_estimate",),
    "kto": ("kto_loss", "kto_reference_point"),
    "ld_dpo": ("ld_logps", "shared_lengths"),
    "metrics": (
        "class_metrics",
        "clip_metrics",
        "clipped_tokens",
        "exponential_metrics",
        "mean_of",
        "orpo_metrics",
        "policy_metrics",
        "ppo_metrics",
        "preference_metrics",
        "sampler_metrics",
    ),
    "names": (
        "BCO_DELTA_MODES",
        "BCO_LOSS_TYPES",
        "CONTRASTIVE_NEGATIVES",
        "CPO_LOSS_TYPES",
        "DPO_LOSS_TYPES",
        "F_DIVERGENCES",
        "KL_ESTIMATORS",
        "KTO_LOSS_TYPES",
        "NASH_MD_FORMS",
        "POLICY_AGGREGATION",
        "POLICY_LOSS_TYPES",
        "SFT_LOSS_TYPES",
        "XPO_LOSS_TYPES",
    ),
    "nash_md": ("adversarial_loss", "geometric_mixture_logps", "nash_md_loss", "nash_md_loss_flat"),
    "nll": ("dft_loss", "nll_loss", "sft_loss"),
    "orpo": ("log_odds_ratio", "orpo_loss"),
    "policy": (
        "cispo_loss",
        "clipped_surrogate",
        "log_importance_weights",
        "policy_loss",
        "policy_loss_flat",
        "sapo_loss",
        "vespo_gate",
    ),
    "policy_options": ("PolicyOptions", "check_policy_options", "policy_level", "sampler_mode"),
    "ppo": ("gae", "gae_flat", "moments", "token_rewards", "token_rewards_flat", "value_loss", "whiten"),
    "reduce": ("class_terms", "policy_term", "step_loss"),
    "reward": ("reward_loss",),
    "rloo": ("reinforce_loss", "rloo_loss"),
    "sampler_correction": ("completion_weights", "off_policy_mask", "sampler_weights"),
    "segments": ("segment_lengths", "segment_mean", "segment_positions", "segment_sum"),
    "stepwise": ("last_steps", "solution_scores", "step_probabilities", "stepwise_loss"),
    "wpo": ("wpo_alignment", "wpo_weights"),
    "xpo": ("xpo_bonus", "xpo_loss"),
}
"""Module -> the public names it holds."""

__all__, __getattr__, __dir__ = on_first_use(__name__, EXPORTS)
