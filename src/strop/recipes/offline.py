"""Recipes of the methods that learn from rows."""

from __future__ import annotations

from typing import Any

from strop.recipes.entry import Recipe

SFT = (
    Recipe(
        "dft", "sft", "Dynamic fine-tuning", "2508.05629",
        {"loss_type": "dft", "learning_rate": 5e-5, "lr_scheduler_type": "cosine", "warmup_steps": 0.1,
         "max_length": 2048}, 256,
        "A token's loss is weighted by its own probability.",
        where="section 4.1, and the command in yongliang-wu/DFT",
    ),
    Recipe(
        "neftune", "sft", "NEFTune", "2310.05914", {"neftune_noise_alpha": 5.0},
        note="The paper tries 5, 10 and 15.", where="and the function in neelsjain/NEFTune, whose default is 5",
    ),
)  # fmt: skip

REWARD = (
    Recipe(
        "centred-reward", "reward", "Helping or herding? Reward model ensembles", "2312.09244",
        {"center_rewards_coefficient": 0.01}, note="Keeps scores near zero, so that models can be compared.",
        where="eta as TRL's paper index reads it",
    ),
)  # fmt: skip

TR_DPO: dict[str, Any] = {
    "beta": 0.05, "learning_rate": 1e-6, "warmup_steps": 100, "max_grad_norm": 2.0, "num_train_epochs": 1,
    "max_length": 1024,
}  # fmt: skip

DPO = (
    Recipe(
        "dpo", "dpo", "Direct preference optimisation", "2305.18290",
        {
            "beta": 0.1, "learning_rate": 1e-6, "optim": "rmsprop", "warmup_steps": 150,
            "lr_scheduler_type": "constant_with_warmup",
        },
        64, "0.5 is the paper's beta for summaries (TL;DR).",
        where="appendix B; RMSprop and 150 steps of warm-up are in eric-mitchell/direct-preference-optimization too",
    ),
    Recipe(
        "zephyr", "dpo", "Zephyr: direct distillation of LM alignment", "2310.16944",
        {"beta": 0.1, "learning_rate": 5e-7, "lr_scheduler_type": "linear", "warmup_steps": 0.1, "num_train_epochs": 3,
         "max_length": 1024}, 32,
        "Mistral 7B on UltraFeedback, after SFT. The handbook's file of today has beta 0.01, cosine and one epoch.",
        where="and recipes/zephyr-7b-beta/dpo/config_full.yaml as huggingface/alignment-handbook first had it",
    ),
    Recipe(
        "tulu3", "dpo", "Tulu 3, length-normalised DPO", "2411.15124",
        {
            "loss_type": "sigmoid_norm", "beta": 5.0, "learning_rate": 5e-7, "lr_scheduler_type": "linear",
            "warmup_steps": 0.1, "num_train_epochs": 1, "max_length": 2048,
        },
        128, "The 8B model; the 70B one takes a learning rate of 2e-7.",
        where="and the authors' tulu3_dpo_8b.yaml",
    ),
    Recipe(
        "cdpo", "dpo", "Conservative DPO", "2305.18290", {"beta": 0.1, "label_smoothing": 0.1},
        note="A note of DPO's authors; label_smoothing is the share of labels taken to be flipped, 0.1 an example.",
        where="and config/loss/dpo.yaml of eric-mitchell/direct-preference-optimization, which names no value",
    ),
    Recipe(
        "robust-dpo", "dpo", "Provably robust DPO", "2403.00409",
        {"loss_type": "robust", "beta": 0.01, "label_smoothing": 0.1, "learning_rate": 1e-3, "max_length": 512}, 16,
        "A small model; the loss has no lower bound: watch the margins.",
        where="appendix B and section 6",
    ),
    Recipe(
        "ipo", "dpo", "A general theoretical paradigm (IPO)", "2310.12036",
        {"loss_type": "ipo", "beta": 0.1, "ipo_length_norm": False},
        note="beta is the paper's tau. Equation 17 as printed adds log-probs up; ipo_length_norm=True averages them.",
        where="whose experiments have no language model; tau from config/loss/ipo.yaml of ContextualAI/HALOs",
    ),
    Recipe("slic", "dpo", "SLiC loss of RSO", "2309.06657", {"loss_type": "hinge", "beta": 0.05},
           where="gamma as TRL's paper index reads it"),
    Recipe(
        "iterative-rpo", "dpo", "Iterative reasoning preference optimisation", "2404.19733",
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 1.0], "beta": 0.1, "learning_rate": 7e-7}, 16,
        "One iteration of four. The paper divides the likelihood by each answer's length, strop by the step's tokens.",
        where="the experiments on GSM8K",
    ),
    Recipe(
        "rpo", "dpo", "Provably mitigating overoptimisation (RPO)", "2405.16436",
        {
            "loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.005], "beta": 0.01, "learning_rate": 5e-7,
            "lr_scheduler_type": "cosine", "warmup_steps": 0.1, "num_train_epochs": 1, "max_length": 1024,
        },
        128,
        where="appendix E.1, and zephyr-7b-beta/rpo/config_full.yaml of YSLIU627/Regularized-Preference-Optimization",
    ),
    Recipe(
        "mpo", "dpo", "Mixed preference optimisation (InternVL)", "2411.10442",
        {
            "loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0], "beta": 0.1,
            "learning_rate": 5e-6, "lr_scheduler_type": "cosine", "warmup_steps": 0.03,
            "num_train_epochs": 1,
        },
        256, "The paper's quality term has a running shift; `bco_pair` has none.",
        where="section 7, and the script of internvl2.0_mpo in OpenGVLab/InternVL, which has the warm-up",
    ),
    Recipe("exo", "dpo", "Exact optimisation (EXO)", "2402.00856",
           {"loss_type": "exo_pair", "label_smoothing": 1e-3, "beta": 0.1, "learning_rate": 1e-6}, 64,
           where="appendix B, and exp/imdb_exp/train_exo.sh of haozheji/exact-optimization"),
    Recipe("nca", "dpo", "Noise contrastive alignment", "2402.05369",
           {"loss_type": "nca_pair", "beta": 0.01, "learning_rate": 5e-6}, 32,
           where="appendix C"),
    Recipe(
        "sppo", "dpo", "Self-play preference optimisation", "2405.00675",
        {"loss_type": "sppo_hard", "beta": 1e-3, "learning_rate": 5e-7, "optim": "rmsprop"}, 64,
        "The reference is the last iterate; the authors' code halves the loss.",
        where="appendix C, and scripts/pipeline.sh of uclaml/SPPO",
    ),
    Recipe(
        "apo-zero", "dpo", "Anchored preference optimisation, zero", "2408.06266",
        {"loss_type": "apo_zero", "beta": 0.1, "learning_rate": 2e-7}, 16,
        "Where the chosen answers are better than what the model says itself.",
        where="section 5.2",
    ),
    Recipe(
        "apo-down", "dpo", "Anchored preference optimisation, down", "2408.06266",
        {"loss_type": "apo_down", "beta": 0.1, "learning_rate": 2e-7}, 16,
        "Where the model is better than the chosen answers.",
        where="section 5.2",
    ),
    Recipe("aot", "dpo", "Distributional preference alignment (AOT)", "2406.05882", {"loss_type": "aot"},
           note="Sorts over the step: give it many pairs a step.",
           where="section 3: the loss, and no more than the loss"),
    Recipe("discopop", "dpo", "Discovered preference optimisation", "2406.08414",
           {"loss_type": "discopop", "beta": 0.05, "discopop_tau": 0.05, "learning_rate": 5e-7}, 64,
           where="appendices B.1 and E"),
    Recipe("wpo", "dpo", "Weighted preference optimisation", "2406.11827",
           {"use_weighting": True, "beta": 0.01, "learning_rate": 5e-7, "lr_scheduler_type": "cosine",
            "warmup_steps": 0.1, "num_train_epochs": 1, "max_length": 1024}, 128,
           "For pairs that other models wrote. Mistral 7B; Llama 3 8B instruct: learning rate 1e-6, 2 epochs.",
           where="and training_configs/mistral.yaml of wzhouad/WPO"),
    Recipe("ld-dpo", "dpo", "Length desensitisation", "2409.06411", {"ld_alpha": 0.5, "beta": 0.1},
           note="The paper tunes ld_alpha per model, 0.3 to 1; 0.5 is a start, and beta is DPO's.",
           where="ld_alpha as TRL's paper index reads it"),
    Recipe("f-dpo-js", "dpo", "Beyond reverse KL, Jensen-Shannon", "2309.16240",
           {"f_divergence_type": "js_divergence", "beta": 0.1, "learning_rate": 5e-7, "optim": "rmsprop",
            "warmup_steps": 150, "lr_scheduler_type": "constant_with_warmup", "max_length": 512}, 64,
           "Reviews (IMDB); 0.3 is its beta for helpful and harmless dialogue.",
           where="and scripts/imdb/run_jsd.sh of alecwangcq/f-divergence-dpo"),
    Recipe(
        "tr-dpo-soft", "dpo", "Learn your reference model, soft", "2404.09656",
        {"sync_ref_model": True, "ref_model_mixup_alpha": 0.6, "ref_model_sync_steps": 1, **TR_DPO},
        where="tables 1 and 2 as TRL's paper index reads them",
    ),
    Recipe(
        "tr-dpo-hard", "dpo", "Learn your reference model, hard", "2404.09656",
        {"sync_ref_model": True, "ref_model_mixup_alpha": 1.0, "ref_model_sync_steps": 512, **TR_DPO},
        where="tables 1 and 2 as TRL's paper index reads them",
    ),
)  # fmt: skip

OTHER_PAIRS = (
    Recipe(
        "simpo", "cpo", "Simple preference optimisation", "2405.14734",
        {
            "loss_type": "simpo", "cpo_alpha": 0.0, "beta": 2.0, "simpo_gamma": 1.0, "learning_rate": 6e-7,
            "lr_scheduler_type": "cosine", "warmup_steps": 0.1, "num_train_epochs": 1, "max_length": 2048,
        },
        128,
        "Llama 3 8B base; instruct: beta 2.5, simpo_gamma 1.375, learning rate 1e-6. Mistral 7B base: 2.0, 1.6, 3e-7; "
        "instruct: 2.5, 0.25, 5e-7.",
        where="and the table of settings in the authors' repository",
    ),
    Recipe("cpo-simpo", "cpo", "CPO with SimPO's score", "2405.14734",
           {"loss_type": "simpo", "cpo_alpha": 0.05, "beta": 10.0, "simpo_gamma": 5.4, "learning_rate": 1e-6,
            "lr_scheduler_type": "cosine", "warmup_steps": 0.1, "num_train_epochs": 1, "max_length": 2048}, 128,
           "Llama 3 8B instruct.",
           where="and training_configs/llama-3-8b-instruct-cpo-simpo.yaml of fe1ixxu/CPO_SIMPO"),
    Recipe("alphapo", "cpo", "AlphaPO", "2501.03884",
           {"loss_type": "alphapo", "alpha": 0.25, "beta": 2.5, "learning_rate": 7e-7},
           note="Mistral 7B instruct. Tune simpo_gamma as for SimPO; the table has 0.1.",
           where="table 3"),
    Recipe("cpo", "cpo", "Contrastive preference optimisation", "2401.08417",
           {"loss_type": "sigmoid", "beta": 0.1, "cpo_alpha": 1.0, "learning_rate": 1e-4, "warmup_steps": 0.01,
            "lr_scheduler_type": "inverse_sqrt", "num_train_epochs": 1, "max_length": 512}, 128,
           "Translation, with a LoRA of rank 16: the learning rate is an adapter's.",
           where="section 4.2, and runs/cpo_ft.sh of fe1ixxu/ALMA"),
    Recipe("orpo", "orpo", "Odds-ratio preference optimisation", "2403.07691",
           {"beta": 0.1, "learning_rate": 5e-6, "lr_scheduler_type": "inverse_sqrt", "warmup_steps": 200,
            "num_train_epochs": 5}, 32,
           "Mistral 7B (Mistral-ORPO-beta). beta is the paper's lambda.",
           where="table 7, appendix C and scripts/run_mistral_orpo_beta.sh of xfactlab/orpo"),
)  # fmt: skip

UNPAIRED = (
    Recipe("kto", "kto", "Kahneman-Tversky optimisation", "2402.01306",
           {"beta": 0.1, "learning_rate": 5e-7, "optim": "rmsprop", "warmup_steps": 150,
            "lr_scheduler_type": "constant_with_warmup"}, 32,
           "Set desirable_weight so that weight times count of the two classes is within 1 to 4/3.",
           where="and config/config.yaml of ContextualAI/HALOs, branch legacy"),
    Recipe("bco", "bco", "Binary classifier optimisation", "2404.04656", {"beta": 0.01, "learning_rate": 5e-7}, 128,
           where="appendix C"),
)  # fmt: skip

STEPS = (
    Recipe("math-shepherd", "prm", "Math-Shepherd: verify and reinforce step by step", "2312.08935",
           {"learning_rate": 2e-6, "lr_scheduler_type": "cosine", "warmup_steps": 0.05, "num_train_epochs": 1,
            "max_length": 8192}, 32,
           "Llama 3.1 8B instruct on the paper's hard labels.",
           where="from math-rm/llama-3.1-prm.yaml of RLHFlow/RLHF-Reward-Modeling, which is not by its authors"),
)  # fmt: skip

OFFLINE = (*SFT, *REWARD, *DPO, *OTHER_PAIRS, *UNPAIRED, *STEPS)
