"""Every field of TRL's configs: accepted and used here, or refused with a reason; and no field of ours is idle."""

from __future__ import annotations

import ast
import dataclasses
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments

import strop
from strop.errors import ConfigError
from strop.methods.grpo import LOSS_OPTIONS
from strop.methods.registry import METHODS

TRAINING = {"learning_rate": 1e-6, "bf16": None, "gradient_checkpointing": True, "logging_steps": 10}
SHARED = {**TRAINING, "model_init_kwargs": None, "trust_remote_code": False}
PREPARED = {"disable_dropout": True, "dataset_num_proc": None, "max_length": 1024}
REFERENCE = {
    "precompute_ref_log_probs": False,
    "precompute_ref_batch_size": None,
    "sync_ref_model": False,
    "ref_model_mixup_alpha": 0.6,
    "ref_model_sync_steps": 512,
}
SAMPLING = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": None,
    "generation_kwargs": None,
    "repetition_penalty": 1.0,
    "cache_implementation": None,
}
VLLM = {
    "use_vllm": False,
    "vllm_mode": "colocate",
    "vllm_model_impl": "vllm",
    "vllm_enable_sleep_mode": False,
    "vllm_structured_outputs_regex": None,
    "vllm_server_base_url": None,
    "vllm_server_host": "0.0.0.0",
    "vllm_server_port": 8000,
    "vllm_server_timeout": 240.0,
    "vllm_group_port": 51216,
    "vllm_gpu_memory_utilization": 0.3,
    "vllm_tensor_parallel_size": 1,
    "ds3_gather_for_generation": True,
}
GROUPS = {
    **SHARED,
    **SAMPLING,
    **VLLM,
    "router_aux_loss_coef": None,
    "disable_dropout": False,
    "num_generations": 8,
    "num_generations_eval": None,
    "max_completion_length": 512,
    "shuffle_dataset": True,
    "pad_to_multiple_of": "auto",
    "generation_batch_size": None,
    "steps_per_generation": None,
    "chat_template_kwargs": None,
    "vllm_max_model_length": None,
    "num_iterations": 1,
    "epsilon": 0.2,
    "epsilon_high": None,
    "reward_weights": None,
    "mask_truncated_completions": False,
    "sync_ref_model": False,
    "ref_model_mixup_alpha": 0.6,
    "ref_model_sync_steps": 512,
    "log_completions": False,
    "log_multimodal": True,
    "num_completions_to_print": None,
    "log_unique_prompts": False,
    "use_transformers_continuous_batching": False,
    "transformers_continuous_batching_config": None,
    "use_transformers_paged": False,
    "remove_unused_columns": False,
}
ONLINE_PAIRS = {
    **SHARED,
    **SAMPLING,
    **VLLM,
    "reward_model_path": None,
    "max_new_tokens": 64,
    "max_length": 512,
    "missing_eos_penalty": None,
    "beta": [0.1],
    "loss_type": "sigmoid",
    "disable_dropout": True,
    "reward_weights": None,
    "remove_unused_columns": False,
}
SFT = {
    **SHARED,
    "router_aux_loss_coef": None,
    "chat_template_path": None,
    "dataset_text_field": "text",
    "dataset_kwargs": None,
    "dataset_num_proc": None,
    "eos_token": None,
    "max_length": 1024,
    "truncation_mode": "keep_start",
    "shuffle_dataset": False,
    "packing": False,
    "packing_strategy": "bfd",
    "padding_free": False,
    "pad_to_multiple_of": "auto",
    "eval_packing": None,
    "completion_only_loss": None,
    "assistant_only_loss": False,
    "loss_type": "nll",
    "activation_offloading": False,
    "pad_token": None,
}
FIELDS: dict[str, dict[str, Any]] = {
    "SFT": SFT,
    "Reward": {
        **SHARED,
        **PREPARED,
        "chat_template_path": None,
        "eos_token": None,
        "pad_to_multiple_of": "auto",
        "center_rewards_coefficient": None,
        "activation_offloading": False,
        "pad_token": None,
    },
    "DPO": {
        **SHARED,
        **PREPARED,
        **REFERENCE,
        "router_aux_loss_coef": None,
        "truncation_mode": "keep_start",
        "padding_free": False,
        "pad_to_multiple_of": "auto",
        "loss_type": ["sigmoid"],
        "loss_weights": None,
        "ld_alpha": None,
        "f_divergence_type": "reverse_kl",
        "f_alpha_divergence_coef": 0.5,
        "label_smoothing": 0.0,
        "beta": 0.1,
        "use_weighting": False,
        "discopop_tau": 0.05,
        "activation_offloading": False,
        "pad_token": None,
    },
    "KTO": {
        **SHARED,
        **PREPARED,
        **REFERENCE,
        "router_aux_loss_coef": None,
        "pad_to_multiple_of": "auto",
        "loss_type": "kto",
        "beta": 0.1,
        "desirable_weight": 1.0,
        "undesirable_weight": 1.0,
        "activation_offloading": False,
        "train_sampling_strategy": "sequential",
    },
    "ORPO": {
        **SHARED,
        **PREPARED,
        "max_completion_length": None,
        "beta": 0.1,
        "padding_value": None,
        "generate_during_eval": False,
        "is_encoder_decoder": None,
    },
    "CPO": {
        **SHARED,
        **PREPARED,
        "max_completion_length": None,
        "beta": 0.1,
        "label_smoothing": 0.0,
        "loss_type": "sigmoid",
        "cpo_alpha": 1.0,
        "simpo_gamma": 0.5,
        "alpha": 0.0,
        "generate_during_eval": False,
        "is_encoder_decoder": None,
    },
    "BCO": {
        **SHARED,
        **PREPARED,
        "max_completion_length": None,
        "beta": 0.1,
        "generate_during_eval": False,
        "is_encoder_decoder": None,
        "precompute_ref_log_probs": False,
        "prompt_sample_size": 1024,
        "min_density_ratio": 0.5,
        "max_density_ratio": 10.0,
    },
    "PPO": {
        "learning_rate": 3e-6,
        "dataset_num_proc": None,
        "num_mini_batches": 1,
        "total_episodes": None,
        "local_rollout_forward_batch_size": 64,
        "num_sample_generations": 10,
        "response_length": 53,
        "stop_token": None,
        "stop_token_id": None,
        "temperature": 0.7,
        "missing_eos_penalty": None,
        "sft_model_path": "m",
        "reward_model_path": "m",
        "model_adapter_name": None,
        "ref_adapter_name": None,
        "num_ppo_epochs": 4,
        "whiten_rewards": False,
        "kl_coef": 0.05,
        "kl_estimator": "k1",
        "cliprange": 0.2,
        "vf_coef": 0.1,
        "cliprange_value": 0.2,
        "gamma": 1.0,
        "lam": 0.95,
        "ds3_gather_for_generation": True,
    },
    "GRPO": {
        **GROUPS,
        "cast_lm_head_to_fp32": False,
        "beta": 0.0,
        "delta": None,
        "sapo_temperature_neg": 1.05,
        "sapo_temperature_pos": 1.0,
        "vespo_k_pos": 2.0,
        "vespo_lambda_pos": 3.0,
        "vespo_k_neg": 3.0,
        "vespo_lambda_neg": 2.0,
        "importance_sampling_level": "token",
        "multi_objective_aggregation": "sum_then_normalize",
        "scale_rewards": "group",
        "loss_type": "dapo",
        "top_entropy_quantile": 1.0,
        "entropy_coef": 0.0,
        "use_adaptive_entropy": False,
        "entropy_coef_min": 0.0,
        "entropy_coef_max": 1.0,
        "entropy_coef_delta": 0.005,
        "entropy_target": 0.2,
        "max_tool_calling_iterations": None,
        "vllm_importance_sampling_correction": True,
        "vllm_importance_sampling_mode": "sequence_mask",
        "vllm_importance_sampling_clip_max": 3.0,
        "vllm_importance_sampling_clip_min": None,
        "vllm_importance_sampling_cap": None,
        "off_policy_mask_threshold": None,
        "use_bias_correction_kl": True,
        "log_completions_hub_repo": None,
    },
    "RLOO": {**GROUPS, "num_generations": 2, "beta": 0.05, "normalize_advantages": False, "reward_clip_range": None},
    "OnlineDPO": ONLINE_PAIRS,
    "NashMD": {**ONLINE_PAIRS, "mixture_coef": [0.5]},
    "XPO": {**ONLINE_PAIRS, "alpha": [1e-5]},
    "GKD": {
        **SFT,
        "temperature": 0.9,
        "lmbda": 0.5,
        "beta": 0.5,
        "max_new_tokens": 128,
        "teacher_model_name_or_path": None,
        "teacher_model_init_kwargs": None,
        "disable_dropout": True,
        "seq_kd": False,
    },
    "PRM": {
        **{**TRAINING, "learning_rate": 1e-5},
        **PREPARED,
        "max_completion_length": None,
        "step_separator": "\n",
        "train_on_last_step_only": False,
    },
}
"""Config of TRL 1.16 (its last release for methods that it removed): field -> its default there."""


def test_the_table_covers_all_methods() -> None:
    assert {method.prefix for method in METHODS} == FIELDS.keys()


@pytest.mark.parametrize(("prefix", "field"), [(prefix, field) for prefix in FIELDS for field in FIELDS[prefix]])
def test_a_field_of_trl_is_accepted_or_explained(prefix: str, field: str) -> None:
    config_class, value = getattr(strop, f"{prefix}Config"), FIELDS[prefix][field]
    try:
        config = config_class(**{field: value})
    except ConfigError as error:
        line = str(error).splitlines()[-1]
        reasons = {**config_class.unused, **config_class.removed}
        assert field in reasons and line.endswith(reasons[field]), line
        return
    assert hasattr(config, config_class.aliases.get(field, field)) or field in config_class.removed


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.verb)
def test_idle_fields_are_refused_once_they_are_set(method: Any) -> None:
    """A field that a method inherits and does not use says so when it is given another value than its default."""
    config_class = method.config()
    fields = {f.name: f for f in dataclasses.fields(config_class)}
    values = {bool: True, float: 0.123, int: 7, str: "other"}
    for name, advice in config_class.unused.items():
        if name in vars(TrainingArguments) and name not in inspect.get_annotations(config_class):
            continue
        default = fields[name].default
        hint = str(fields[name].type)
        kind = next((k for k in values if k.__name__ in hint), str)
        value = [0.5] if "list" in hint else not default if kind is bool else values[kind]
        value = {"reward_on_error": "skip", "loss_type": "ipo"}.get(name, value)
        with pytest.raises(ConfigError, match="has no effect here") as error:
            config_class(**{name: value})
        assert advice in str(error.value)


SOURCE = Path(strop.__file__).parent


def names_read() -> set[str]:
    """Attributes and `getattr` names that any module of the package reads, also by way of a tuple `..._OPTIONS`; checks
    of configs left out."""
    names: set[str] = set()
    for path in SOURCE.rglob("*.py"):
        if "testing" not in path.parts:
            names.update(_reads(ast.parse(path.read_text(encoding="utf-8"))))
    return names


def _reads(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef) and node.name in ("contradictions", "__post_init__"):
        return
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
        yield node.attr
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
        yield from (arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str))
    if isinstance(node, ast.Assign) and any(getattr(t, "id", "").endswith("_OPTIONS") for t in node.targets):
        yield from (part.value for part in ast.walk(node.value) if isinstance(part, ast.Constant))
    for child in ast.iter_child_nodes(node):
        yield from _reads(child)


SPELT_OTHERWISE = {
    "use_vllm": "becomes engine='vllm' when the config is made",
    "total_episodes": "becomes max_steps when the config is made",
}


def test_every_declared_field_is_read_somewhere() -> None:
    read = names_read() | set(LOSS_OPTIONS.values())  # a table of GRPO's names, made from its loss's fields
    parent = {f.name for f in dataclasses.fields(TrainingArguments)}
    idle = {
        f"{method.config_name}.{f.name}"
        for method in METHODS
        for f in dataclasses.fields(method.config())
        if f.name not in parent and f.name not in read and f.name not in SPELT_OTHERWISE
    }
    assert not idle
