"""What earlier releases of transformers and TRL called settings of all methods, and what they had that is not needed.

An entry of `ALIASES` means the same as the setting that it names; one of `REMOVED` says what to do instead.
"""

from __future__ import annotations

from typing import Any

ALIASES: dict[str, str] = {
    "max_seq_length": "max_length",
    "evaluation_strategy": "eval_strategy",
    "warmup_ratio": "warmup_steps",
    "max_target_length": "max_completion_length",
    "no_cuda": "use_cpu",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "push_to_hub_model_id": "hub_model_id",
    "push_to_hub_token": "hub_token",
    "log_with": "report_to",
    "use_liger": "use_liger_kernel",
}
"""Name -> setting."""

_FUSED = "strop's own head has bounded memory in forward and backward; remove it."
_PRECISION = "Mixed precision is PyTorch's own: bf16=True or fp16=True; remove it."
_ROWS = "strop deals out the rows of a step itself; remove it."
_FSDP = "Give it in fsdp_config."

REMOVED: dict[str, str] = {
    "use_liger_loss": _FUSED,
    "use_liger_kernel_loss": _FUSED,
    "pad_to_multiple_of": "No padding is computed; remove it.",
    "padding_value": "No padding token is ever compared or computed; remove it.",
    "label_pad_token_id": "Masks come from lengths, never from ids; remove it.",
    "is_encoder_decoder": "strop trains decoder-only models; remove it.",
    "ref_model_init_kwargs": "The reference is the starting model; load another one yourself and pass ref_model=.",
    "use_logits_to_keep": "The head sees scored positions only; remove it.",
    "use_num_logits_to_keep": "The head sees scored positions only; remove it.",
    "force_use_ref_model": "The reference is the starting model, by construction; remove it.",
    "model_adapter_name": "The active adapter is trained: model.set_adapter(name) chooses it.",
    "ref_adapter_name": "This method compares with no reference; remove it.",
    "base_model_attribute_name": "The base of an adapter is found by itself; remove it.",
    "group_by_length": "No padding is computed that it could save; remove it.",
    "save_safetensors": "Weights are saved as safetensors always; remove it.",
    "include_tokens_per_second": "tokens per second are logged always; remove it.",
    "include_inputs_for_metrics": "compute_metrics gets the method's predictions, and the rows are yours; remove it.",
    "logging_dir": "Logs are in output_dir; those of TensorBoard go where TENSORBOARD_LOGGING_DIR (environment) says.",
    "use_mps_device": "An MPS device is used where there is one; remove it.",
    "half_precision_backend": _PRECISION,
    "fp16_backend": _PRECISION,
    "fp16_opt_level": _PRECISION,
    "dispatch_batches": _ROWS,
    "split_batches": _ROWS,
    "sharded_ddp": "Use fsdp or deepspeed.",
    "fsdp_min_num_params": _FSDP,
    "fsdp_transformer_layer_cls_to_wrap": _FSDP,
    "torchdynamo": "Use torch_compile_backend.",
    "adafactor": "Use optim='adafactor'.",
    "predict_with_generate": "Use generate_during_eval=True.",
    "model_name": "Pass the model to the trainer.",
    "tracker_project_name": "Trackers read their own environment variables (WANDB_PROJECT ...).",
    "exp_name": "Use run_name.",
}
"""Name -> what to do."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "pad_to_multiple_of": ("auto",),
    "label_pad_token_id": (-100,),
    "save_safetensors": (True,),
    "half_precision_backend": ("auto",),
    "fp16_backend": ("auto",),
    "fp16_opt_level": ("O1",),
    "fsdp_min_num_params": (0,),
}
"""Name -> values that ask for nothing: the default that it had."""

ONLINE_ALIASES: dict[str, str] = {
    "num_samples": "num_generations",
    "rloo_k": "num_generations",
    "kl_coef": "beta",
    "max_new_tokens": "max_completion_length",
    "response_length": "max_completion_length",
    "vllm_timeout": "vllm_server_timeout",
    "gpu_memory_utilization": "vllm_gpu_memory_utilization",
    "vllm_max_model_len": "vllm_max_model_length",
    "wandb_log_unique_prompts": "log_unique_prompts",
    "stop_strings": "stop",
    "eos_token_id": "stop_token_ids",
    "stop_token_id": "stop_token_ids",
}
_CLIENT = "vLLM runs in the training process, or is asked as a server (vllm_mode); remove it."
ONLINE_REMOVED: dict[str, str] = {
    "vllm_device": _CLIENT,
    "vllm_dtype": _CLIENT,
    "vllm_enable_prefix_caching": "vLLM keeps the prefixes that prompts share by itself; remove it.",
    "vllm_init_kwargs": _CLIENT,
}
ONLINE_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "vllm_device": ("auto",),
    "vllm_dtype": ("auto",),
    "vllm_enable_prefix_caching": (True,),
}

_ROUND = "A round has per_device_train_batch_size x gradient_accumulation_steps x num_mini_batches completions."
_KL = "The weight of the KL is beta (kl_coef) all the time; remove it."
PPO_ALIASES: dict[str, str] = {
    "num_ppo_epochs": "num_iterations",
    "ppo_epochs": "num_iterations",
    "init_kl_coef": "beta",
    "gamma_": "gamma",
    "local_rollout_forward_batch_size": "max_slots",
}
PPO_REMOVED: dict[str, str] = {
    "num_sample_generations": "Completions are in samples.jsonl; log_completions=True shows them.",
    "stop_token": "Completions end at the tokenizer's and the model's own end tokens; else use stop or stop_token_ids.",
    "batch_size": _ROUND,
    "mini_batch_size": _ROUND,
    "backward_batch_size": _ROUND,
    "forward_batch_size": _ROUND,
    "adap_kl_ctrl": _KL,
    "target": _KL,
    "target_kl": _KL,
    "horizon": _KL,
    "early_stopping": _KL,
    "steps": "Use max_steps, or total_episodes.",
    "optimize_cuda_cache": "Memory is planned from the rows; remove it.",
}
PPO_NEUTRAL: dict[str, tuple[Any, ...]] = {"num_sample_generations": (10,), "stop_token": ("eos",)}

RLOO_ALIASES: dict[str, str] = {
    "num_ppo_epochs": "num_iterations",
    "cliprange": "epsilon",
    "local_rollout_forward_batch_size": "max_slots",
}
RLOO_REMOVED: dict[str, str] = {
    **{name: PPO_REMOVED[name] for name in PPO_NEUTRAL},
    "num_mini_batches": "Use steps_per_generation: micro-batches that one round of completions is learned from in.",
    "total_episodes": "Use max_steps.",
    "token_level_kl": "The KL is that of whole completions; remove it.",
    "normalize_reward": "Use normalize_advantages=True.",
    "sft_model_path": "Pass the model to the trainer.",
    "reward_model_path": "Pass it to the trainer: reward_funcs=.",
}
RLOO_NEUTRAL: dict[str, tuple[Any, ...]] = {**PPO_NEUTRAL, "num_mini_batches": (1,)}
