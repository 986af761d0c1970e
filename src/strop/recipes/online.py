"""Recipes of the methods that sample."""

from __future__ import annotations

from typing import Any

from strop.recipes.entry import Recipe

CLIP_HIGHER: dict[str, Any] = {"epsilon": 0.2, "epsilon_high": 0.28, "beta": 0.0}
GSPO: dict[str, Any] = {
    "loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4, "beta": 0.0,
    "steps_per_generation": 4,
}  # fmt: skip

GRPO = (
    Recipe(
        "deepseekmath", "grpo", "Group relative policy optimisation", "2402.03300",
        {
            "loss_type": "grpo", "beta": 0.04, "epsilon": 0.2, "use_bias_correction_kl": False,
            "num_generations": 64, "max_completion_length": 1024, "learning_rate": 1e-6,
        },
        note="1,024 completions a step.",
        where="section 4.2",
    ),
    Recipe(
        "deepseek-r1", "grpo", "DeepSeek-R1", "2501.12948",
        {
            "loss_type": "grpo", "beta": 1e-3, "epsilon": 10.0, "use_bias_correction_kl": False, "num_generations": 16,
            "max_completion_length": 32768, "learning_rate": 3e-6, "sync_ref_model": True,
            "ref_model_mixup_alpha": 1.0, "ref_model_sync_steps": 400,
        },
        32, "R1-Zero: 65,536 tokens from step 8,200 on; each rollout of 8,192 completions is learned from in 16 steps.",
    ),
    Recipe(
        "dapo", "grpo", "DAPO", "2503.14476",
        {
            "loss_type": "dapo", **CLIP_HIGHER, "dynamic_sampling": True, "num_generations": 16,
            "max_completion_length": 20480, "steps_per_generation": 16, "learning_rate": 1e-6,
        },
        32, "Add the soft overlong punishment as a reward: `get_soft_overlong_punishment(20480, 4096)`.",
        where="section 4.1",
    ),
    Recipe(
        "dr-grpo", "grpo", "Understanding R1-Zero-like training (Dr. GRPO)", "2503.20783",
        {
            "loss_type": "dr_grpo", "scale_rewards": "none", "beta": 0.0, "num_generations": 8,
            "max_completion_length": 3000, "learning_rate": 1e-6,
        },
        16,
        where="and the training settings of the authors' repository",
    ),
    Recipe("gspo", "grpo", "Group sequence policy optimisation", "2507.18071", GSPO,
           note="Four minibatches a rollout, so that there is something to clip.",
           where="section 5.1"),
    Recipe(
        "cispo", "grpo", "MiniMax-M1 (CISPO)", "2506.13585",
        {"loss_type": "cispo", "cispo_cap": "relative", "epsilon_high": 4.0, "beta": 0.0},
        note="The paper does not print its upper bound: 1 + epsilon_high here is ScaleRL's cap of 5.",
    ),
    Recipe(
        "scalerl", "grpo", "The art of scaling RL compute (ScaleRL)", "2510.13786",
        {
            "loss_type": "cispo", "cispo_cap": "absolute", "epsilon_high": 5.0, "scale_rewards": "batch", "beta": 0.0,
            "num_generations": 16,
        },
        48, "The loss and its scale; the paper's float32 head is always on here.",
    ),
    Recipe("sapo", "grpo", "Soft adaptive policy optimisation", "2511.20347",
           {"loss_type": "sapo", "sapo_temperature_pos": 1.0, "sapo_temperature_neg": 1.05, "beta": 0.0}),
    Recipe(
        "vespo", "grpo", "VESPO", "2602.10693",
        {
            "loss_type": "vespo", "vespo_k_pos": 2.0, "vespo_lambda_pos": 3.0, "vespo_k_neg": 3.0,
            "vespo_lambda_neg": 2.0, "beta": 0.0,
        },
    ),
    Recipe("luspo", "grpo", "LUSPO", "2602.05261", {**GSPO, "loss_type": "luspo"},
           note="Sequences weighted by their length; the clip range is GSPO's."),
    Recipe("gdpo", "grpo", "GDPO: several rewards, each normalised", "2601.05242",
           {"multi_objective_aggregation": "normalize_then_sum"},
           note="For two rewards or more; reward_weights weigh them after the normalisation."),
    Recipe("lite-ppo", "grpo", "Tricks or traps? (Lite PPO)", "2508.08221",
           {"loss_type": "dapo", "scale_rewards": "batch", "beta": 0.0, "num_generations": 8, "temperature": 0.99,
            "top_p": 0.99, "top_k": 100}),
    Recipe("intellect-2", "grpo", "INTELLECT-2, two-sided clipping", "2505.07291",
           {"loss_type": "dapo", "epsilon": 0.2, "delta": 4.0}),
    Recipe("top-entropy", "grpo", "Beyond the 80/20 rule", "2506.01939",
           {"loss_type": "dapo", **CLIP_HIGHER, "top_entropy_quantile": 0.2, "dynamic_sampling": True},
           where="section 5.2"),
)  # fmt: skip

OTHER_REWARDED = (
    Recipe("rloo", "rloo", "Back to basics: REINFORCE leave-one-out", "2402.14740",
           {"num_generations": 4, "beta": 0.03, "learning_rate": 1e-6}, note="512 completions a step in the paper.",
           where="appendix C"),
    Recipe(
        "ppo-tldr", "ppo", "The N+ implementation details of RLHF with PPO", "2403.17031",
        {
            "learning_rate": 3e-6, "beta": 0.05, "num_iterations": 4, "num_mini_batches": 1, "cliprange": 0.2,
            "cliprange_value": 0.2, "vf_coef": 0.1, "gamma": 1.0, "lam": 0.95, "temperature": 0.7,
            "max_completion_length": 53, "missing_eos_penalty": 1.0,
        },
        512, "Summaries (TL;DR). The paper scores -1 where no end token was said; a penalty of 1 is taken off here.",
    ),
)  # fmt: skip

OWN_PAIRS = (
    Recipe("online-dpo", "online-dpo", "Direct language model alignment from online AI feedback", "2402.04792",
           {"beta": 0.1, "learning_rate": 5e-7, "temperature": 0.9}, 128),
    Recipe("nash-md", "nash-md", "Nash learning from human feedback", "2312.00886",
           {"mixture_coef": 0.125, "beta": 0.008}, note="mixture_coef is the paper's beta, beta its tau."),
    Recipe("xpo", "xpo", "Exploratory preference optimisation", "2405.21046", {"beta": 0.1, "alpha": 1e-5}),
)  # fmt: skip

DISTILLATION = (
    Recipe("gkd-mixed", "gkd", "Generalised knowledge distillation, half of it on own samples", "2306.13649",
           {"lmbda": 0.5, "beta": 0.5}),
    Recipe("gkd-on-policy", "gkd", "On-policy distillation", "2306.13649", {"lmbda": 1.0, "beta": 1.0},
           note="Reverse KL on the student's own samples."),
)  # fmt: skip

ONLINE = (*GRPO, *OTHER_REWARDED, *OWN_PAIRS, *DISTILLATION)
