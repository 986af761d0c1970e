"""Methods of other trainers that a subclass may try to override, and that the engine never calls.

An override that nothing calls trains something other than what was written, in silence; so the class is refused when
it is made, with the hook that does the same here. Whatever the parent itself calls (`create_optimizer`,
`create_scheduler`, `training_step`, `evaluation_loop`, `log`, `get_train_dataloader` ...) is honoured.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

from strop.errors import ConfigError

LOSS = "loss(scores, batch, step) -> LossOutput, from which training and evaluation take their loss"
ROWS = "facts(args, given), whose `convert` and `tokenize` say how rows become examples; or give rows that hold ids"
WINDOW = "prepare_step(examples), which sees all rows of an optimizer step"
SCORES = "score(model, batch, log), which gives the per-token log-probs of the policy"
REFERENCE = "the argument ref_model, or reference_in_loss"
SAMPLING = "the argument rollout_func, or rollout(prompts, n, training=...)"
REWARDS = "the argument reward_funcs, or score_groups(groups, mode)"
ADVANTAGES = "advantages(groups) of GRPO and RLOO, or loss(scores, batch, step)"
METRICS = "the metrics of what loss(scores, batch, step) returns, or log(logs)"
TEACHER = "the argument teacher_model, or context(batch, work, training)"
WEIGHTS = "the argument embedding_func, or loss(scores, batch, step)"

HOOKS: dict[str, str] = {
    **dict.fromkeys(
        (
            "compute_loss", "dpo_loss", "kto_loss", "bco_loss", "cpo_loss", "odds_ratio_loss", "compute_liger_loss",
            "get_batch_loss_metrics", "_compute_loss", "_compute_loss_liger", "_compute_loss_dpo",
            "generalized_jsd_loss", "_compute_losses", "dft_loss", "_compute_policy_loss", "_compute_distillation_loss",
            "_chunked_ce_forward", "compute_loss_func", "get_off_policy_mask", "get_high_entropy_mask",
            "get_gamma_weights", "_compute_liger_loss",
        ),
        LOSS,
    ),
    "prediction_step": f"{LOSS}, and predictions(scores, batch) for compute_metrics",
    **dict.fromkeys(
        (
            "tokenize_row", "process_row", "_prepare_dataset", "build_tokenized_answer", "concatenated_inputs",
            "_tokenize", "_tokenize_prompts", "_tokenize_prompts_untruncated", "tokenize_batch",
            "_prepare_packed_dataloader", "_prepare_non_packed_dataloader",
        ),
        ROWS,
    ),
    **dict.fromkeys(
        (
            "_prepare_inputs", "_prepare_input", "_get_train_sampler", "_get_eval_sampler", "_get_dataloader",
            "_get_num_items_in_batch",
        ),
        WINDOW,
    ),
    **dict.fromkeys(
        (
            "concatenated_forward", "get_batch_logps", "_get_per_token_logps", "_forward", "_get_last_hidden_state",
            "_get_per_token_logps_and_entropies", "_compute_logprobs", "forward", "_forward_logits",
            "_compute_kl_logps", "_get_sequence_logps", "batched_forward_pass",
        ),
        SCORES,
    ),
    **dict.fromkeys(
        (
            "compute_reference_log_probs", "compute_ref_log_probs", "_compute_ref_log_probs", "null_ref_context",
            "_precompute_ref_logps",
        ),
        REFERENCE,
    ),
    **dict.fromkeys(
        (
            "_generate", "_generate_single_turn", "_generate_and_score_completions", "_generate_completions",
            "_generate_vllm", "generate_on_policy_outputs", "_tool_call_loop", "_generate_transformers",
            "_generate_vllm_server", "_generate_vllm_colocate", "_generate_completion_ids", "_generate_with_model",
            "_process_completions", "generate_from_model", "generate_from_model_and_ref", "_move_model_to_vllm",
        ),
        SAMPLING,
    ),
    **dict.fromkeys(
        (
            "_calculate_rewards", "_calculate_rewards_from_functions", "_compute_judge", "_compute_rewards",
            "compute_rewards",
        ),
        REWARDS,
    ),
    **dict.fromkeys(("_compute_advantage", "_compute_advantages", "compute_advantages"), ADVANTAGES),
    **dict.fromkeys(
        ("store_metrics", "_log_metrics", "_log_metric", "_log_statistics", "record_step_stats"),
        METRICS,
    ),
    "_get_teacher_logits": TEACHER,
    **dict.fromkeys(
        ("match_underlying_distribution", "_get_chosen_prob", "_get_prompt_embeddings", "_vectorize_prompt"), WEIGHTS
    ),
}  # fmt: skip
"""Method of another trainer -> what to override, or to give, in its place."""

PREFERENCES = ("DPO", "KTO", "ORPO", "CPO", "BCO")
OWN_PAIRS = ("OnlineDPO", "NashMD", "XPO")
GROUPS = ("GRPO", "RLOO")
ONLINE = (*GROUPS, *OWN_PAIRS, "PPO", "GKD")

ENGINES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        (
            "dpo_loss", "kto_loss", "bco_loss", "cpo_loss", "odds_ratio_loss", "get_batch_loss_metrics",
            "_compute_loss_liger", "_compute_loss_dpo", "process_row", "build_tokenized_answer", "concatenated_inputs",
            "concatenated_forward", "get_batch_logps", "_compute_kl_logps", "compute_reference_log_probs",
            "compute_ref_log_probs", "_compute_ref_log_probs", "_precompute_ref_logps", "generate_from_model",
            "generate_from_model_and_ref", "store_metrics", "match_underlying_distribution", "_get_chosen_prob",
            "_get_prompt_embeddings", "_vectorize_prompt",
        ),
        PREFERENCES,
    ),
    "forward": ("KTO", "BCO"),
    "null_ref_context": (*PREFERENCES, "PPO"),
    "tokenize_row": (*PREFERENCES, *OWN_PAIRS, "PRM"),
    "_prepare_dataset": (*PREFERENCES, "SFT", "GKD", "Reward"),
    **dict.fromkeys(
        ("dft_loss", "_chunked_ce_forward", "_prepare_packed_dataloader", "_prepare_non_packed_dataloader"),
        ("SFT", "GKD"),
    ),
    **dict.fromkeys(
        ("generalized_jsd_loss", "_compute_distillation_loss", "generate_on_policy_outputs", "_get_teacher_logits"),
        ("GKD",),
    ),
    **dict.fromkeys(("_compute_losses", "_forward", "_compute_logprobs", "_log_statistics"), OWN_PAIRS),
    **dict.fromkeys(("get_off_policy_mask", "get_high_entropy_mask", "get_gamma_weights"), GROUPS),
    **dict.fromkeys(
        (
            "_tokenize", "_tokenize_prompts", "_tokenize_prompts_untruncated", "tokenize_batch", "_get_per_token_logps",
            "_get_last_hidden_state", "_get_per_token_logps_and_entropies", "_forward_logits", "_get_sequence_logps",
            "batched_forward_pass", "_generate", "_generate_single_turn", "_generate_and_score_completions",
            "_generate_completions", "_generate_vllm", "_tool_call_loop", "_generate_transformers",
            "_generate_vllm_server", "_generate_vllm_colocate", "_generate_completion_ids", "_generate_with_model",
            "_process_completions", "_move_model_to_vllm", "_calculate_rewards", "_calculate_rewards_from_functions",
            "_compute_judge", "_compute_rewards", "compute_rewards", "_compute_advantage", "_compute_advantages",
            "compute_advantages", "_log_metrics", "_log_metric", "record_step_stats",
        ),
        ONLINE,
    ),
}  # fmt: skip
"""Method of another trainer -> the trainers there that call it; one that is not named here is called for all.

Under the trainers of other methods the name is free: a helper that a script calls itself.
"""


class NoDeadOverrides:
    """Refuses a class, what it mixes in or was given since, or an assignment to a trainer, with a method of `HOOKS`."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        refuse(cls)

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        refuse(cls)  # a script may have put a method on the class since, on ours or on the parent too
        return super().__new__(cls)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in expected(type(self)) and (name != "compute_loss_func" or value is not None):
            raise ConfigError(f"Nothing would call {name}. Subclass the trainer and override {HOOKS[name]}.")
        super().__setattr__(name, value)


def refuse(cls: type) -> None:
    """Raise `ConfigError` for all methods of a trainer's class that nothing would call."""
    if problems := [f"{name}: override {HOOKS[name]}." for name in dict.fromkeys(dead_methods(cls))]:
        raise ConfigError.collect(f"{cls.__name__} defines methods that nothing would call:", problems)


def dead_methods(cls: type) -> Iterator[str]:
    """The names expected to be called that a class or a parent has by other code than that of transformers."""
    names = expected(cls)
    for base in cls.__mro__:
        for name, value in vars(base).items():
            code = getattr(value, "__func__", value)
            if name in names and not str(getattr(code, "__module__", "")).startswith("transformers."):
                yield name


def expected(cls: type) -> set[str]:
    """The names of `HOOKS` that another library calls in its trainers of this class's methods."""
    methods = {base.__name__.removesuffix("Trainer") for base in cls.__mro__ if base.__module__.startswith("strop.")}
    return {name for name in HOOKS if not methods.isdisjoint(ENGINES.get(name, methods))}
