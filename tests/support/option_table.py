"""How each field of the fifteen configs is moved, and what must change: one entry for each that a declaration alone
cannot tell. Keys are the class that declares a field, or a case of `strop.testing.cases` where it differs there.

A field without an entry is moved to a value of its declaration and must change the weights of a run of two steps.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from strop.methods.xpo import OF_GIVEN_PAIRS
from strop.settings.config import ReferenceConfig
from tests.support import option_scenes as scenes
from tests.support import turn_scenes
from tests.support.flips import Flip, owner

EVALUATED = {"eval_strategy": "steps", "eval_steps": 1}
AGAIN = {"num_iterations": 2}
"""Completions used twice, with a policy that has moved in between."""
ENDING = {"stop_token_ids": list(range(0, 288, 12)), "temperature": 5.0}
"""Some completions end by themselves, others do not."""
TURNS = {
    "max_completion_length": 200,
    "temperature": 3.0,
    "num_generations": 2,
    "per_device_train_batch_size": 2,
    "max_steps": 1,
}
"""Two completions with room for several turns of a conversation."""
REFERENCE = {"beta": 0.4, "num_iterations": 1, "ref_model_sync_steps": 1}
VLLM: dict[str, Any] = {"given": {"engine": "vllm"}, "within": scenes.stub_vllm}
SERVER: dict[str, Any] = {
    "given": {"engine": "vllm", "vllm_mode": "server"},
    "within": scenes.stub_vllm,
    "seen": "extra",
}
SAMPLED: dict[str, Any] = {"given": EVALUATED | {"generate_during_eval": True}}
TWO_REWARDS = scenes.rewarded(scenes.letters_reward, scenes.length_reward)
FAILING = scenes.rewarded(scenes.failing_reward)


def truncated(mode: str) -> dict[str, Any]:
    return {**VLLM, "given": {"engine": "vllm", "vllm_importance_sampling_mode": mode}}


def again(**settings: Any) -> dict[str, Any]:
    return {"given": AGAIN | settings}


TABLE_SHOWN = {"log_completions": True, "num_completions_to_print": 6}
ONLINE = {
    "eos_token": Flip("e", "rows", make=scenes.fond_of_e),
    "num_completions_to_print": Flip(1, "printed", {"log_completions": True}),
    "sync_ref_model": Flip(True, given=REFERENCE),
    "ref_model_mixup_alpha": Flip(0.3, given=REFERENCE | {"sync_ref_model": True}),
    "ref_model_sync_steps": Flip(1, given={**REFERENCE, "ref_model_sync_steps": 512, "sync_ref_model": True}),
    "ref_adapter_name": Flip("other", "error", {"beta": 0.4}),
}
"""What the shared settings need in order to act on sampled completions."""
TABLE: dict[str, dict[str, Flip]] = {
    "TrainerConfig": {
        "learning_rate": Flip(0.002),
        "logging_steps": Flip(2, "log"),
        "logging_nan_inf_filter": Flip(True, "log", {"on_nonfinite": "skip"}, before=scenes.poison),
        "bf16": Flip(True, make=scenes.single_precision),
        "model_init_kwargs": Flip({"dtype": "bfloat16"}, make=scenes.named_model),
        "trust_remote_code": Flip(True, "error", make=scenes.remote_model),
        "disable_dropout": Flip(False, make=scenes.with_dropout),
        "chat_template_path": Flip("template.jinja", "rows", make=scenes.conversations),
        "eos_token": Flip("<|im_end|>", "rows"),
        "pad_token": Flip("<|im_end|>", "model"),
        "max_length": Flip(20),
        "max_prompt_length": Flip(2),
        "max_completion_length": Flip(3),
        "truncation_mode": Flip("keep_end", given={"max_length": 20}),
        "columns": Flip("prompt=nowhere", "error"),
        "skip_bad_rows": Flip(True, "error", make=scenes.one_broken_row),
        "dataset_num_proc": Flip(2, "process"),
        "max_eval_rows": Flip(1, "passes", EVALUATED),
        "dataset_cache_dir": Flip("cache", "files"),
        "layout": Flip("padded", "passes"),
        "padding_free": Flip(True, "error", {"layout": "padded"}),
        "max_tokens_per_micro_batch": Flip(30, "passes"),
        "head_memory_mb": Flip(1, "extra", make=scenes.wide_vocabulary, within=scenes.head_chunks),
        "router_aux_loss_coef": Flip(0.1, make=scenes.experts),
        "activation_offloading": Flip(True, "error", within=scenes.without_cuda),
        "overwrite_output_dir": Flip(True, "files", make=scenes.used_folder),
        "stop_grace": Flip(5.0, "extra", within=scenes.wakeups),
        "on_nonfinite": Flip("skip", "error", before=scenes.poison),
        "rehearsal": Flip(True, "printed"),
        "generate_during_eval": Flip(True, "files", EVALUATED),
        "num_completions_to_print": Flip(1, "printed", **SAMPLED),
    },
    "ReferenceConfig": {
        "precompute_ref_log_probs": Flip(True, "files"),
        "precompute_ref_batch_size": Flip(2, "passes", {"precompute_ref_log_probs": True}),
        "sync_ref_model": Flip(True, given={"ref_model_sync_steps": 1}),
        "ref_model_mixup_alpha": Flip(0.3, given={"ref_model_sync_steps": 1, "sync_ref_model": True}),
        "ref_model_sync_steps": Flip(1, given={"sync_ref_model": True}),
        "model_adapter_name": Flip("policy", "error"),
        "ref_adapter_name": Flip("other", "error"),
    },
    "OnlineConfig": {
        "num_generations": Flip(4),
        "num_generations_eval": Flip(3, "log", EVALUATED),
        "max_completion_length": Flip(4),
        "max_length": Flip(24, "files", make=scenes.one_long_prompt),
        "temperature": Flip(0.5),
        "top_p": Flip(0.5),
        "top_k": Flip(3),
        "min_p": Flip(0.2),
        "repetition_penalty": Flip(1.5),
        "stop": Flip(["a", "e", "o", "t"]),
        "stop_token_ids": Flip(list(range(5, 60))),
        "chat_template_kwargs": Flip({"mood": "gladly "}, "rows", make=scenes.moody_conversations),
        "engine": Flip("transformers", "engine"),
        "ray_workers": Flip(3, "extra", {"engine": "ray"}, within=scenes.ray_actors),
        "ray_timeout": Flip(5.0, "extra", {"engine": "ray"}, within=scenes.ray_actors),
        "max_slots": Flip(1, "engine"),
        "max_staleness": Flip(1, within=scenes.engine_beside),
        "use_vllm": Flip(True, "extra", within=scenes.stub_vllm),
        "vllm_mode": Flip("server", "extra", **VLLM),
        "vllm_server_base_url": Flip("http://other:1234", **SERVER),
        "vllm_server_host": Flip("other", **SERVER),
        "vllm_server_port": Flip(1234, **SERVER),
        "vllm_server_timeout": Flip(5.0, **SERVER),
        "vllm_sync_dir": Flip("shared", **SERVER),
        "vllm_gpu_memory_utilization": Flip(0.5, "extra", **VLLM),
        "vllm_max_model_length": Flip(100, "extra", **VLLM),
        "vllm_model_impl": Flip("transformers", "extra", **VLLM),
        "beta": Flip(0.4),
        "steps_per_generation": Flip(2),
        "generation_batch_size": Flip(16),
        "num_iterations": Flip(2),
        "shuffle_dataset": Flip(False),
        "reward_weights": Flip([1.0, 0.1], make=TWO_REWARDS),
        "reward_on_error": Flip("skip", "error", make=FAILING),
        "reward_penalty": Flip(99.0, given={"reward_on_error": "penalize"}, make=FAILING),
        "reward_timeout": Flip(0.2, "error", {"max_steps": 1}, make=scenes.rewarded(scenes.slow_reward)),
        "reward_isolation": Flip(True, make=scenes.rewarded(scenes.homesick_reward())),
        "missing_eos_penalty": Flip(5.0, given=ENDING),
        "mask_truncated_completions": Flip(True, given=ENDING),
        "max_tool_calling_iterations": Flip(
            1, "rows", {"max_completion_length": 200, "temperature": 3.0}, make=turn_scenes.endless
        ),
        "tool_timeout": Flip(0.02, "rows", TURNS, make=turn_scenes.slow),
        "tools_at_once": Flip(
            4, "log", TURNS | {"max_length": None}, make=turn_scenes.threaded, before=turn_scenes.calling
        ),
        "environment_isolation": Flip(True, "rows", TURNS, make=turn_scenes.homesick),
        "past_turns": Flip("sampled", "rows", TURNS, make=turn_scenes.rewritten),
        "advantage_level": Flip("turn", given=TURNS, make=turn_scenes.endless),
        "log_completions": Flip(True, "printed"),
        "log_unique_prompts": Flip(True, "printed", TABLE_SHOWN),
    },
    "SFTConfig": {
        "learning_rate": Flip(0.002),
        "loss_type": Flip("dft"),
        "disable_dropout": Flip(True, given={"disable_dropout": False}, make=scenes.with_dropout),
        "dataset_text_field": Flip("other", make=scenes.plain_texts),
        "completion_only_loss": Flip(False),
        "assistant_only_loss": Flip(True, make=scenes.dialogues),
        "packing": Flip(True),
        "packing_strategy": Flip("wrapped", given={"packing": True, "max_length": 20}),
        "eval_packing": Flip(True, "passes", EVALUATED | {"per_device_eval_batch_size": 1}),
        "shuffle_dataset": Flip(True, given={"train_sampling_strategy": "sequential"}),
    },
    "RewardConfig": {
        "learning_rate": Flip(0.002),
        "max_length": Flip(28, make=scenes.without_evaluation),
        "center_rewards_coefficient": Flip(0.1),
    },
    "DPOConfig": {
        "beta": Flip(0.3),
        "loss_type": Flip("hinge"),
        "loss_weights": Flip([1.0, 0.3], given={"loss_type": ["sigmoid", "sft"]}),
        "label_smoothing": Flip(0.2),
        "ipo_length_norm": Flip(False, given={"loss_type": "ipo"}),
        "ld_alpha": Flip(0.3),
        "f_divergence_type": Flip("js_divergence"),
        "f_alpha_divergence_coef": Flip(0.3, given={"f_divergence_type": "alpha_divergence"}),
        "use_weighting": Flip(True),
        "wpo_clamp": Flip(False, given={"use_weighting": True}, make=scenes.undecided),
        "discopop_tau": Flip(0.2, given={"loss_type": "discopop"}),
    },
    "KTOConfig": {"beta": Flip(0.3), "desirable_weight": Flip(1.4), "undesirable_weight": Flip(1.4)},
    "ORPOConfig": {"beta": Flip(0.3)},
    "CPOConfig": {
        "beta": Flip(0.3),
        "loss_type": Flip("hinge"),
        "label_smoothing": Flip(0.2),
        "cpo_alpha": Flip(0.3),
        "simpo_gamma": Flip(1.0, given={"loss_type": "simpo"}),
        "alpha": Flip(0.5, given={"loss_type": "alphapo"}),
        "contrastive_temperature": Flip(0.1, given={"loss_type": "contrastive_hidden"}),
        "contrastive_anchor": Flip("ref_chosen", given={"loss_type": "contrastive_hidden"}),
    },
    "BCOConfig": {
        "learning_rate": Flip(0.002),
        "beta": Flip(0.3),
        "delta_decay": Flip(0.5),
        "prompt_sample_size": Flip(2, make=scenes.embedded_prompts),
        "min_density_ratio": Flip(3.0, make=scenes.embedded_prompts),
        "max_density_ratio": Flip(0.02, given={"min_density_ratio": 0.0}, make=scenes.embedded_prompts),
    },
    "PPOConfig": {
        "sft_model_path": Flip("source", "files", make=scenes.policy_by_path),
        "learning_rate": Flip(0.002),
        "num_generations": Flip(2),
        "max_completion_length": Flip(4),
        "temperature": Flip(0.5),
        "beta": Flip(0.4, given={"num_iterations": 1}),
        "num_iterations": Flip(1),
        "num_mini_batches": Flip(2),
        "total_episodes": Flip(4, "rates", {"max_steps": -1}),
        "kl_estimator": Flip("k3", given={"num_iterations": 1}),
        "cliprange": Flip(0.0001),
        "cliprange_value": Flip(0.0001, given={"learning_rate": 0.03}),
        "vf_coef": Flip(1.0),
        "gamma": Flip(0.5),
        "lam": Flip(0.2),
        "reward_model_path": Flip("score", make=scenes.no_reward, seen="error"),
    },
    "OffPolicyConfig": {
        "vllm_importance_sampling_correction": Flip(False, **VLLM),
        "vllm_importance_sampling_mode": Flip("token_mask", **VLLM),
        "vllm_importance_sampling_clip_max": Flip(0.5, **truncated("token_truncate")),
        "vllm_importance_sampling_clip_min": Flip(0.5, **truncated("token_truncate")),
    },
    "PolicyGradientConfig": {"stream_prompts": Flip(1, within=scenes.engine_beside)},
    "GRPOConfig": {
        "disable_dropout": Flip(True, given={"disable_dropout": False}, make=scenes.with_dropout),
        "loss_type": Flip("sapo"),
        "importance_sampling_level": Flip("sequence", **again()),
        "epsilon": Flip(0.001, **again()),
        "epsilon_high": Flip(0.001, **again()),
        "delta": Flip(1.3, **again(learning_rate=0.03)),
        "cispo_cap": Flip("absolute", **again(loss_type="cispo", epsilon_high=1.0)),
        "use_bias_correction_kl": Flip(False, **again(beta=0.4)),
        "scale_rewards": Flip("batch", given={"num_generations": 2}),
        "multi_objective_aggregation": Flip("normalize_then_sum", make=TWO_REWARDS),
        "dynamic_sampling": Flip(True, make=scenes.rewarded(scenes.flat_reward), given={"max_steps": 4}),
        "max_resampling_rounds": Flip(
            1, "log", {"dynamic_sampling": True}, make=scenes.rewarded(scenes.constant_reward)
        ),
        "top_entropy_quantile": Flip(0.5),
        "entropy_coef": Flip(0.1),
        "use_adaptive_entropy": Flip(True, given={"entropy_coef": 0.1}),
        "entropy_coef_min": Flip(0.05, given={"use_adaptive_entropy": True, "entropy_target": 9.0}),
        "entropy_coef_max": Flip(
            0.002, given={"use_adaptive_entropy": True, "entropy_target": 9.0, "entropy_coef": 0.001}
        ),
        "entropy_coef_delta": Flip(0.1, given={"use_adaptive_entropy": True, "entropy_target": 9.0}),
        "entropy_target": Flip(9.0, given={"use_adaptive_entropy": True, "entropy_coef": 0.1}),
        "off_policy_mask_threshold": Flip(0.0, **again()),
        "sapo_temperature_pos": Flip(3.0, **again(loss_type="sapo")),
        "sapo_temperature_neg": Flip(3.0, **again(loss_type="sapo")),
        "vespo_k_pos": Flip(0.5, **again(loss_type="vespo")),
        "vespo_lambda_pos": Flip(0.5, **again(loss_type="vespo")),
        "vespo_k_neg": Flip(0.5, **again(loss_type="vespo")),
        "vespo_lambda_neg": Flip(0.5, **again(loss_type="vespo")),
    },
    "RLOOConfig": {
        "disable_dropout": Flip(True, given={"disable_dropout": False}, make=scenes.with_dropout),
        "num_generations": Flip(4),
        "beta": Flip(0.4),
        "epsilon": Flip(0.00001, **again(learning_rate=0.00001)),
        "epsilon_high": Flip(0.00001, **again(learning_rate=0.00001)),
        "normalize_advantages": Flip(True),
        "reward_clip_range": Flip([0.2, 0.5]),
        "vllm_importance_sampling_mode": Flip(
            "sequence_truncate",
            given={**VLLM["given"], "vllm_importance_sampling_clip_min": 0.5},
            within=scenes.stub_vllm,
        ),
        "num_generations_eval": Flip(3, "log", EVALUATED),
    },
    "OnlinePairConfig": {
        "learning_rate": Flip(0.002),
        "max_completion_length": Flip(4),
        "temperature": Flip(0.5),
        "beta": Flip(0.4),
        "loss_type": Flip("ipo"),
        "reward_model_path": Flip("score", make=scenes.no_reward, seen="error"),
    },
    "OnlineDPOConfig": {"num_generations": Flip(4), "num_generations_eval": Flip(3, "log", EVALUATED)},
    "NashMDConfig": {
        "mixture_coef": Flip(0.0),
        "gradient_form": Flip("trl"),
        "objective": Flip("adversarial"),
        "num_generations": Flip(2, "error"),
    },
    "XPOConfig": {
        "mode": Flip("offline_exponential", "error"),
        "loss_type": Flip("ipo"),
        "alpha": Flip(0.3),
        "num_generations": Flip(2, "error"),
    },
    "GKDConfig": {
        "learning_rate": Flip(0.002),
        "max_length": Flip(8, given={"lmbda": 0.0}),
        "max_completion_length": Flip(4),
        "num_generations": Flip(2, "error"),
        "temperature": Flip(0.5, given={"lmbda": 1.0}),
        "kd_temperature": Flip(2.0),
        "scale_by_t2": Flip(True, given={"kd_temperature": 2.0}),
        "lmbda": Flip(0.0),
        "beta": Flip(0.2),
        "seq_kd": Flip(True, given={"lmbda": 0.0}),
        "teacher_model_name_or_path": Flip("source", "error", make=scenes.no_teacher),
        "teacher_model_init_kwargs": Flip({"dtype": "bfloat16"}, make=scenes.named_teacher),
        "chunk_tokens": Flip(4, "extra", within=scenes.divergence_chunks),
    },
    "PRMConfig": {
        "learning_rate": Flip(0.002),
        "step_separator": Flip(" .", "rows"),
        "train_on_last_step_only": Flip(True),
        "label_format": Flip("inline", "error", make=scenes.marked_steps),
    },
    "prm": {
        "eos_token": Flip("<|im_end|>", "model"),  # no step ends in it; it is saved with the tokenizer
        "max_length": Flip(40),
        "max_completion_length": Flip(30),
    },
    "reward": {
        "max_prompt_length": Flip(12, make=scenes.without_evaluation),
        "max_completion_length": Flip(14, make=scenes.without_evaluation),
    },
    "cpo": {"max_length": Flip(30)},
    "xpo": {
        "mode": Flip("online", "error"),
        "reward_model_path": Flip("score", make=scenes.no_reward),
    },
    "grpo": ONLINE,
    "rloo": {
        **ONLINE,
        "vllm_importance_sampling_clip_max": Flip(0.0, **truncated("sequence_truncate")),
        "vllm_importance_sampling_clip_min": Flip(0.5, **truncated("sequence_truncate")),
    },
    **{case: {**ONLINE, "num_iterations": Flip(2, "error")} for case in ("online-dpo", "nash-md", "xpo-online")},
    "ppo": {**ONLINE, "log_unique_prompts": Flip(True, "printed", {**TABLE_SHOWN, "num_generations": 2})},
    "gkd": {**ONLINE, "eos_token": Flip("e", "rows", {"lmbda": 0.0})},
}


def entry(case: str, config_class: type, name: str) -> Flip:
    """How a field of a case's config is moved. A field that the config refuses must raise."""
    home = owner(config_class, name)
    flip = next(
        (TABLE[key][name] for key in (case, home.__name__ if home else "") if name in TABLE.get(key, {})), Flip()
    )
    refused = name in config_class.unused  # type: ignore[attr-defined]
    idle_in_xpo = {"xpo": name not in OFFLINE_XPO, "xpo-online": name in OF_GIVEN_PAIRS}
    return Flip(flip.value, "error") if refused or idle_in_xpo.get(case) else flip


OFFLINE_XPO = {f.name for f in dataclasses.fields(ReferenceConfig)} | {"beta", *TABLE["xpo"]}
"""Settings that act on XPO where it is given pairs."""
