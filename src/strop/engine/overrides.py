"""Methods of other trainers that a subclass may try to override, and that the engine never calls.

An override that nothing calls trains something other than what was written, in silence; so the class is refused when
it is made, with the hook that does the same here. Whatever the parent itself calls (`create_optimizer`,
`create_scheduler`, `training_step`, `evaluation_loop`, `log`, `get_train_dataloader` ...) is honoured.
"""

from __future__ import annotations

from typing import Any

from strop.errors import ConfigError

LOSS = "loss(scores, batch, step) -> LossOutput, from which training and evaluation take their loss"
ROWS = "facts(args, given), whose `convert` and `tokenize` say how rows become examples; or give rows that hold ids"
WINDOW = "prepare_step(examples), which sees all rows of an optimizer step"
SCORES = "score(model, batch, log), which gives the per-token log-probs of the policy"
REFERENCE = "the argument ref_model, or reference_in_loss"
SAMPLING = "the argument rollout_func, or rollout(prompts, n, training=...)"
REWARDS = "the argument reward_funcs, or score_groups(groups, mode)"

HOOKS: dict[str, str] = {
    **dict.fromkeys(
        (
            "compute_loss", "dpo_loss", "kto_loss", "bco_loss", "cpo_loss", "odds_ratio_loss", "compute_liger_loss",
            "get_batch_loss_metrics", "_compute_loss", "_compute_loss_liger", "_compute_loss_dpo", "compute_liger_loss",
            "generalized_jsd_loss", "_compute_losses", "dft_loss",
        ),
        LOSS,
    ),
    "prediction_step": f"{LOSS}, and predictions(scores, batch) for compute_metrics",
    **dict.fromkeys(
        (
            "tokenize_row", "process_row", "_prepare_dataset", "build_tokenized_answer", "concatenated_inputs",
            "_tokenize", "_tokenize_prompts", "tokenize_batch",
        ),
        ROWS,
    ),
    **dict.fromkeys(("_prepare_inputs", "_get_train_sampler", "_get_eval_sampler"), WINDOW),
    **dict.fromkeys(
        (
            "concatenated_forward", "get_batch_logps", "_get_per_token_logps", "_forward", "_get_last_hidden_state",
            "_get_per_token_logps_and_entropies", "_compute_logprobs",
        ),
        SCORES,
    ),
    **dict.fromkeys(
        ("compute_reference_log_probs", "compute_ref_log_probs", "_compute_ref_log_probs", "null_ref_context"),
        REFERENCE,
    ),
    **dict.fromkeys(
        (
            "_generate", "_generate_single_turn", "_generate_and_score_completions", "_generate_completions",
            "_generate_vllm", "generate_on_policy_outputs", "_tool_call_loop",
        ),
        SAMPLING,
    ),
    **dict.fromkeys(("_calculate_rewards", "_calculate_rewards_from_functions", "_compute_judge"), REWARDS),
}  # fmt: skip
"""Method of another trainer -> what to override, or to give, in its place."""


class NoDeadOverrides:
    """Refuses a class, what it mixes in, or an assignment to a trainer, with a method of `HOOKS`."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        problems = []
        for base in cls.__mro__:
            if base.__module__.startswith("strop."):
                break
            problems += [f"{name}: override {HOOKS[name]}." for name in vars(base) if name in HOOKS]
        if problems:
            raise ConfigError.collect(f"{cls.__name__} defines methods that nothing would call:", problems)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in HOOKS or (name == "compute_loss_func" and value is not None):
            raise ConfigError(f"Nothing would call {name}. Subclass the trainer and override {HOOKS.get(name, LOSS)}.")
        super().__setattr__(name, value)
