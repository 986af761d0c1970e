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
        where="the details of its training in version 2; the clip ratio is that of R1's first stage",
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
            "max_completion_length": 3000, "learning_rate": 1e-6, "lr_scheduler_type": "constant", "temperature": 1.0,
        },
        16,
        where="and examples/qwen2.5-math-7b.sh of sail-sg/understand-r1-zero",
    ),
    Recipe("gspo", "grpo", "Group sequence policy optimisation", "2507.18071", GSPO,
           note="Four minibatches a rollout, so that there is something to clip.",
           where="section 5.1"),
    Recipe(
        "cispo", "grpo", "MiniMax-M1 (CISPO)", "2506.13585",
        {"loss_type": "cispo", "cispo_cap": "relative", "epsilon_high": 4.0, "beta": 0.0},
        note="The paper does not print its upper bound: 1 + epsilon_high here is ScaleRL's cap of 5.",
        where="the loss alone",
    ),
    Recipe(
        "scalerl", "grpo", "The art of scaling RL compute (ScaleRL)", "2510.13786",
        {
            "loss_type": "cispo", "cispo_cap": "absolute", "epsilon_high": 5.0, "scale_rewards": "batch", "beta": 0.0,
            "num_generations": 16,
        },
        48, "The loss and its scale; the paper's float32 head is always on here.",
        where="as TRL's paper index reads it",
    ),
    Recipe("sapo", "grpo", "Soft adaptive policy optimisation", "2511.20347",
           {"loss_type": "sapo", "sapo_temperature_pos": 1.0, "sapo_temperature_neg": 1.05, "beta": 0.0,
            "learning_rate": 1e-6, "steps_per_generation": 8, "max_completion_length": 8192}, 32,
           "The learning rate, the lengths and the eight steps a rollout are the script's.",
           where="and examples/sapo_trainer/run_qwen30b_sapo.sh of volcengine/verl"),
    Recipe(
        "vespo", "grpo", "VESPO", "2602.10693",
        {
            "loss_type": "vespo", "vespo_k_pos": 2.0, "vespo_lambda_pos": 3.0, "vespo_k_neg": 3.0,
            "vespo_lambda_neg": 2.0, "beta": 0.0, "num_generations": 8, "max_completion_length": 15360,
            "steps_per_generation": 8, "learning_rate": 1e-6,
        },
        256, "The authors run 8, 16, 32 and 64 steps a rollout.",
        where="and recipe/vespo/run/sync/vespo_N_8.sh of FloyedShen/VESPO",
    ),
    Recipe("luspo", "grpo", "LUSPO", "2602.05261",
           {**GSPO, "loss_type": "luspo", "epsilon": 2e-3, "epsilon_high": 2.5e-3},
           note="GSPO with sequences weighted by their length.",
           where="section 5.1 as TRL's paper index reads it"),
    Recipe("gdpo", "grpo", "GDPO: several rewards, each normalised", "2601.05242",
           {"multi_objective_aggregation": "normalize_then_sum", "num_generations": 16, "max_completion_length": 1024,
            "learning_rate": 5e-6, "lr_scheduler_type": "cosine", "warmup_steps": 0.1, "num_train_epochs": 1},
           note="Qwen2.5 1.5B instruct on GSM8K. For two rewards or more; reward_weights weigh them after the "
                "normalisation.",
           where="and recipes/Qwen2.5-1.5B-Instruct/gdpo_gsm8k/config.yaml of NVlabs/GDPO"),
    Recipe("lite-ppo", "grpo", "Tricks or traps? (Lite PPO)", "2508.08221",
           {"loss_type": "dapo", "scale_rewards": "batch", "beta": 0.0, "num_generations": 8, "temperature": 0.99,
            "top_p": 0.99, "top_k": 100},
           where="as TRL's paper index reads it"),
    Recipe("intellect-2", "grpo", "INTELLECT-2, two-sided clipping", "2505.07291",
           {"loss_type": "dapo", "epsilon": 0.2, "delta": 4.0, "beta": 1e-3, "num_generations": 16,
            "learning_rate": 3e-7}, where="section 4.1 as TRL's paper index reads it"),
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
            "max_completion_length": 53, "missing_eos_penalty": 1.0, "lr_scheduler_type": "linear",
            "adam_epsilon": 1e-5, "whiten_rewards": False,
        },
        512, "Summaries (TL;DR). The paper scores -1 where no end token was said; a penalty of 1 is taken off here.",
        where="and ppo.py of vwxyzjn/summarize_from_feedback_details",
    ),
    Recipe(
        "instructgpt", "ppo", "Training language models to follow instructions (InstructGPT)", "2203.02155",
        {
            "beta": 0.02, "num_iterations": 1, "num_mini_batches": 8, "cliprange": 0.2, "gamma": 1.0,
            "temperature": 1.0,
        },
        64, "A round of 512 is learned from in eight steps. Without the mix of pretraining gradients (PPO-ptx) and the "
        "average of weights.",
        where="appendix C.4",
    ),
)  # fmt: skip

OWN_PAIRS = (
    Recipe("online-dpo", "online-dpo", "Direct language model alignment from online AI feedback", "2402.04792",
           {"beta": 0.1, "learning_rate": 5e-7, "temperature": 0.9}, 128),
    Recipe("nash-md", "nash-md", "Nash learning from human feedback", "2312.00886",
           {"mixture_coef": 0.125, "beta": 0.008}, note="mixture_coef is the paper's beta, beta its tau."),
    Recipe("xpo", "xpo", "Exploratory preference optimisation", "2405.21046", {"beta": 0.1, "alpha": 1e-5},
           where="beta and alpha are TRL's defaults"),
)  # fmt: skip

DISTILLATION = (
    Recipe("gkd-mixed", "gkd", "Generalised knowledge distillation, half of it on own samples", "2306.13649",
           {"lmbda": 0.5, "beta": 0.5, "temperature": 1.0, "learning_rate": 3e-4, "warmup_steps": 2000,
            "max_steps": 40_000, "max_completion_length": 64}, 32,
           "Summaries (XSum) with T5 models; causal models take a tenth of the learning rate and less.",
           where="table A.1 as TRL's paper index reads it"),
    Recipe("gkd-on-policy", "gkd", "On-policy distillation", "2306.13649", {"lmbda": 1.0, "beta": 1.0},
           note="Reverse KL on the student's own samples.",
           where="section 3: the two ends of its axes"),
)  # fmt: skip

ONLINE = (*GRPO, *OTHER_REWARDED, *OWN_PAIRS, *DISTILLATION)
