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
NO_VALUE_MODEL = "PPOTrainer makes its critic itself: give it a causal model, and value_model= for another start"
ALIEN = f"{FIFTEEN}; this is not one of them"
DIFFUSION = f"{FIFTEEN}; diffusion models are not among them"
IMAGES = f"{FIFTEEN}; images are not among what they read"
COLLATOR = "rows become trees of tokens without a collator; remove it"
PART = "it is a part of TRL's own trainers; docs/moving-from-trl.md has the hooks of strop's, in its last table"
ADAPTER = "the reference is the adapter as it was at the start, by construction"
ELSEWHERE: dict[str, str] = {
    "AutoModelForCausalLMWithValueHead": NO_VALUE_MODEL,
    "AutoModelForSeq2SeqLMWithValueHead": f"{FIFTEEN}; encoder-decoder models are not among them",
    "PreTrainedModelWrapper": NO_VALUE_MODEL,
    "create_reference_model": "give ref_model= an id, a path or a module, or nothing: " + ADAPTER,
    "SyncRefModelCallback": "set sync_ref_model=True, ref_model_mixup_alpha and ref_model_sync_steps in the config",
    "DataCollatorForCompletionOnlyLM": "give rows with prompt and completion; or assistant_only_loss=True",
    "DataCollatorForLanguageModeling": COLLATOR,
    "DataCollatorForPreference": COLLATOR,
    "DataCollatorForChatML": "rows with messages are tokenised without a collator; remove it",
    "ConstantLengthDataset": "set packing=True in SFTConfig",
    "DPODataCollatorWithPadding": COLLATOR,
    "RewardDataCollatorWithPadding": COLLATOR,
    "MergeModelCallback": "merge with mergekit after training",
    "WeaveCallback": "completions are in samples.jsonl of the run; report_to names the trackers",
    "DDPOTrainer": DIFFUSION,
    "DDPOConfig": DIFFUSION,
    "AlignPropTrainer": DIFFUSION,
    "AlignPropConfig": DIFFUSION,
    "IterativeSFTConfig": "use SFTConfig, or GRPOConfig",
    "IterativeSFTTrainer": "use SFTTrainer, or GRPOTrainer for completions that are sampled and scored",
    "PPOv2Trainer": "use PPOTrainer",
    "PPOv2Config": "use PPOConfig",
    "RLOOv2Config": "use RLOOConfig",
    **dict.fromkeys(("BaseJudge", "BasePairwiseJudge"), "a class with judge(prompts, completions) needs no base here"),
    **dict.fromkeys(("BaseBinaryJudge", "BaseRankJudge"), "use strop.rewards.Judge, or a reward function"),
    **dict.fromkeys(("RandomPairwiseJudge", "RandomRankJudge"), "use strop.rewards.RandomJudge"),
    "AllTrueJudge": "use a reward function that asks all of them",
    "HfPairwiseJudge": "use strop.rewards.EndpointJudge",
    "OpenAIPairwiseJudge": "use strop.rewards.EndpointJudge",
    "PairRMJudge": "use strop.rewards.RewardModelJudge with a reward model",
    "is_deepspeed_available": "use importlib.util.find_spec('deepspeed')",
    "prepare_multimodal_messages": IMAGES,
    "supports_tool_calling": "look at tokenizer.chat_template; a trainer with tools= says what it lacks",
    "maybe_gather_lm_head_ctx": "trainers gather what they need of sharded weights; use loss(scores, batch, step)",
    "unwrap_model_for_generation": "use trainer.policy, or accelerate's unwrap_model",
    "add_response_schema": "tool calls are read from the chat template's own form; remove it",
    "AsyncGRPOTrainer": "use GRPOTrainer, with a vLLM server where sampling is what takes the time",
    "AsyncGRPOConfig": "use GRPOConfig, with a vLLM server where sampling is what takes the time",
    "GOLDTrainer": "use GKDTrainer where student and teacher share a tokenizer",
    "GOLDConfig": "use GKDConfig where student and teacher share a tokenizer",
    "MiniLLMTrainer": "use GKDTrainer with lmbda=1 and beta=1",
    "MiniLLMConfig": "use GKDConfig with lmbda=1 and beta=1",
    "LengthSampler": "max_completion_length bounds completions, and they end where the model ends them",
    "BestOfNSampler": "sample several by model.generate, and keep what a reward scores highest",
    **dict.fromkeys(("AdaptiveKLController", "FixedKLController"), "beta (kl_coef) is the weight of the KL penalty"),
    **dict.fromkeys(("TextEnvironment", "TextHistory"), "pass environment_factory= or tools= to the trainer"),
    "generate_rollout_completions": "pass environment_factory=, whose turns the trainer samples, or tools=",
    **dict.fromkeys(
        ("DPOScriptArguments", "SFTScriptArguments", "RewardScriptArguments", "ChatArguments", "YamlConfigParser"),
        "use ScriptArguments and TrlParser",
    ),
    "GRPOScriptArguments": "use ScriptArguments, with fields of your own beside",
    "RLOOScriptArguments": "use ScriptArguments, with fields of your own beside",
    "SIMPLE_QUERY_CHAT_TEMPLATE": "use SIMPLE_CHAT_TEMPLATE",
    **dict.fromkeys(("FDivergenceType", "FDivergenceConstants"), "give its name: f_divergence_type='js_divergence'"),
    "pack_examples": "use pack_dataset",
    "peft_module_casting_to_bf16": "adapters and bases keep the precision that they were loaded in; remove it",
    **dict.fromkeys(("generate_model_card", "get_comet_experiment_url"), "use trainer.create_model_card()"),
    **dict.fromkeys(
        (
            "pad", "selective_log_softmax", "entropy_from_logits", "nanmin", "nanmax", "nanstd", "RepeatSampler",
            "profiling_decorator", "profiling_context", "prepare_deepspeed", "prepare_fsdp", "first_true_indices",
            "masked_mean", "masked_var", "masked_whiten", "get_reward", "batch_generation", "truncate_response",
            "exact_div", "forward", "print_rich_table", "print_prompt_completions_sample", "cap_exp", "flush_left",
            "flush_right", "truncate_right", "compute_accuracy", "decode_and_strip_padding", "RewardFunc",
            "OnlineTrainerState", "RunningMoments", "VLLMClient", "PolicyAndValueWrapper", "logprobs_from_logits",
            "split_tensor_dict", "shuffle_sequence_dict", "unsplit_pixel_values_by_grid",
            "log_table_to_comet_experiment",
        ),
        PART,
    ),
    **dict.fromkeys(
        (
            "DataCollatorForVisionLanguageModeling", "DataCollatorForVisionPreference",
            "prepare_multimodal_messages_vllm",
        ),
        IMAGES,
    ),
    **dict.fromkeys(
        (
            "DefaultDDPOStableDiffusionPipeline", "DDPOStableDiffusionPipeline", "DDPOPipelineOutput",
            "DDPOSchedulerOutput",
        ),
        DIFFUSION,
    ),
    **dict.fromkeys(
        (
            "SDFTTrainer", "SDFTConfig", "SDPOTrainer", "SDPOConfig", "SSDTrainer", "SSDConfig", "TPOTrainer",
            "TPOConfig", "A2POTrainer", "A2POConfig", "GMPOTrainer", "GMPOConfig", "PAPOTrainer", "PAPOConfig",
            "GFPOTrainer", "GFPOConfig", "IWOPDTrainer", "IWOPDConfig", "ServerDistillationTrainer",
            "ServerDistillationConfig", "AsyncDistillationTrainer", "AsyncDistillationConfig",
            "GRPOWithReplayBufferTrainer", "GRPOWithReplayBufferConfig",
            "HarborSpec", "HarborEnv", "HarborBashEnv", "OpenRewardSpec", "HarnessRolloutWorker",
        ),
        ALIEN,
    ),
}  # fmt: skip
"""Name that TRL has or had, and strop has not -> what to use."""


def instead_of(name: str) -> str:
    """A sentence that says what to use in place of a name of TRL's; empty where it is none."""
    return f"'{name}' of TRL has no namesake in strop: {ELSEWHERE[name]}." if name in ELSEWHERE else ""
