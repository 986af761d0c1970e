"""Names that scripts import from TRL: where each lives here, or what to use in its place. Imports nothing heavy."""

from __future__ import annotations

HOMES: dict[str, tuple[str, ...]] = {
    "arguments": (
        "DatasetConfig", "DatasetMixtureConfig", "ModelConfig", "ScriptArguments", "get_dataset",
        "get_kbit_device_map", "get_peft_config", "get_quantization_config",
    ),
    "parser": ("TrlParser", "init_zero_verbose"),
    "conversations": (
        "apply_chat_template", "extract_prompt", "is_conversational", "is_conversational_from_value",
        "maybe_apply_chat_template", "maybe_convert_to_chatml", "maybe_extract_prompt",
        "maybe_unpair_preference_dataset", "unpair_preference_dataset",
    ),
    "templates": ("clone_chat_template", "get_training_chat_template", "setup_chat_format"),
    "packs": ("pack_dataset", "truncate_dataset"),
    "progress": ("RichProgressCallback",),
    "completions": ("LogCompletionsCallback", "WinRateCallback"),
    "averaging": ("BEMACallback",),
    "distillation": ("DistillationConfig", "DistillationTrainer"),
}  # fmt: skip
"""Module of this room -> the names that `from strop import ...` finds in it."""

SCRIPT_NAMES: dict[str, str] = {name: f"strop.scripts.{home}" for home, names in HOMES.items() for name in names}

FIFTEEN = "strop trains language models that read text, by the fifteen methods that `strop --help` lists"
INSTEAD: dict[str, str] = {
    f"{FIFTEEN}; this is not one of them": """
        SDFTTrainer SDFTConfig SDPOTrainer SDPOConfig SSDTrainer SSDConfig TPOTrainer TPOConfig A2POTrainer A2POConfig
        GMPOTrainer GMPOConfig PAPOTrainer PAPOConfig GFPOTrainer GFPOConfig IWOPDTrainer IWOPDConfig
        ServerDistillationTrainer ServerDistillationConfig AsyncDistillationTrainer AsyncDistillationConfig
        GRPOWithReplayBufferTrainer GRPOWithReplayBufferConfig
        HarborSpec HarborEnv HarborBashEnv OpenRewardSpec HarnessRolloutWorker""",
    f"{FIFTEEN}; diffusion models are not among them": """
        DDPOTrainer DDPOConfig AlignPropTrainer AlignPropConfig DefaultDDPOStableDiffusionPipeline
        DDPOStableDiffusionPipeline DDPOPipelineOutput DDPOSchedulerOutput""",
    f"{FIFTEEN}; encoder-decoder models are not among them": "AutoModelForSeq2SeqLMWithValueHead",
    f"{FIFTEEN}; images are not among what they read": """
        prepare_multimodal_messages prepare_multimodal_messages_vllm DataCollatorForVisionLanguageModeling
        DataCollatorForVisionPreference""",
    "PPOTrainer makes its critic itself: give it a causal model, and value_model= for another start": (
        "AutoModelForCausalLMWithValueHead PreTrainedModelWrapper"
    ),
    "give ref_model= an id, a path or a module, or nothing: the reference is the adapter as it was at the start, by "
    "construction": "create_reference_model",
    "set sync_ref_model=True, ref_model_mixup_alpha and ref_model_sync_steps in the config": "SyncRefModelCallback",
    "give rows with prompt and completion; or assistant_only_loss=True": "DataCollatorForCompletionOnlyLM",
    "rows become trees of tokens without a collator; remove it": """
        DataCollatorForLanguageModeling DataCollatorForPreference DPODataCollatorWithPadding
        RewardDataCollatorWithPadding""",
    "rows with messages are tokenised without a collator; remove it": "DataCollatorForChatML",
    "set packing=True in SFTConfig": "ConstantLengthDataset",
    "merge with mergekit after training": "MergeModelCallback",
    "completions are in samples.jsonl of the run; report_to names the trackers": "WeaveCallback",
    "use SFTConfig, or GRPOConfig": "IterativeSFTConfig",
    "use SFTTrainer, or GRPOTrainer for completions that are sampled and scored": "IterativeSFTTrainer",
    "use PPOTrainer": "PPOv2Trainer",
    "use PPOConfig": "PPOv2Config",
    "use RLOOConfig": "RLOOv2Config",
    "a class with judge(prompts, completions) needs no base here": "BaseJudge BasePairwiseJudge",
    "use strop.rewards.Judge, or a reward function": "BaseBinaryJudge BaseRankJudge",
    "use strop.rewards.RandomJudge": "RandomPairwiseJudge RandomRankJudge",
    "use a reward function that asks all of them": "AllTrueJudge",
    "use strop.rewards.EndpointJudge": "HfPairwiseJudge OpenAIPairwiseJudge",
    "use strop.rewards.RewardModelJudge with a reward model": "PairRMJudge",
    "use importlib.util.find_spec('deepspeed')": "is_deepspeed_available",
    "look at tokenizer.chat_template; a trainer with tools= says what it lacks": "supports_tool_calling",
    "trainers gather what they need of sharded weights; use loss(scores, batch, step)": "maybe_gather_lm_head_ctx",
    "use trainer.policy, or accelerate's unwrap_model": "unwrap_model_for_generation",
    "tool calls are read from the chat template's own form; remove it": "add_response_schema",
    "use GRPOTrainer, with a vLLM server where sampling is what takes the time": "AsyncGRPOTrainer",
    "use GRPOConfig, with a vLLM server where sampling is what takes the time": "AsyncGRPOConfig",
    "use GKDTrainer where student and teacher share a tokenizer": "GOLDTrainer",
    "use GKDConfig where student and teacher share a tokenizer": "GOLDConfig",
    "use GKDTrainer with lmbda=1 and beta=1": "MiniLLMTrainer",
    "use GKDConfig with lmbda=1 and beta=1": "MiniLLMConfig",
    "max_completion_length bounds completions, and they end where the model ends them": "LengthSampler",
    "sample several by model.generate, and keep what a reward scores highest": "BestOfNSampler",
    "beta (kl_coef) is the weight of the KL penalty": "AdaptiveKLController FixedKLController",
    "pass environment_factory= or tools= to the trainer": "TextEnvironment TextHistory",
    "pass environment_factory=, whose turns the trainer samples, or tools=": "generate_rollout_completions",
    "use ScriptArguments and TrlParser": """
        DPOScriptArguments SFTScriptArguments RewardScriptArguments ChatArguments YamlConfigParser""",
    "use ScriptArguments, with fields of your own beside": "GRPOScriptArguments RLOOScriptArguments",
    "use SIMPLE_CHAT_TEMPLATE": "SIMPLE_QUERY_CHAT_TEMPLATE",
    "give its name: f_divergence_type='js_divergence'": "FDivergenceType FDivergenceConstants",
    "use pack_dataset": "pack_examples",
    "adapters and bases keep the precision that they were loaded in; remove it": "peft_module_casting_to_bf16",
    "use trainer.create_model_card()": "generate_model_card get_comet_experiment_url",
    "it is a part of TRL's own trainers; docs/moving-from-trl.md has the hooks of strop's, in its last table": """
        pad selective_log_softmax entropy_from_logits nanmin nanmax nanstd RepeatSampler profiling_decorator
        profiling_context prepare_deepspeed prepare_fsdp first_true_indices masked_mean masked_var masked_whiten
        get_reward batch_generation truncate_response exact_div forward print_rich_table
        print_prompt_completions_sample cap_exp flush_left flush_right truncate_right compute_accuracy
        decode_and_strip_padding RewardFunc OnlineTrainerState RunningMoments VLLMClient PolicyAndValueWrapper
        logprobs_from_logits split_tensor_dict shuffle_sequence_dict unsplit_pixel_values_by_grid
        log_table_to_comet_experiment""",
}
"""What to use -> the names that TRL has or had for it, and strop has not."""

ELSEWHERE: dict[str, str] = {name: text for text, names in INSTEAD.items() for name in names.split()}


def instead_of(name: str) -> str:
    """A sentence that says what to use in place of a name of TRL's; empty where it is none."""
    return f"'{name}' of TRL has no namesake in strop: {ELSEWHERE[name]}." if name in ELSEWHERE else ""
