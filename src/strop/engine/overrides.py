"""Methods of other trainers that a subclass may try to override, and that the engine never calls.

An override that nothing calls trains something other than what was written, in silence; so the class is refused when
it is made, with the hook that does the same here. Whatever the parent itself calls (`create_optimizer`,
`create_scheduler`, `training_step`, `evaluation_loop`, `log`, `get_train_dataloader` ...) is honoured.
"""

from __future__ import annotations

import dis
from collections.abc import Iterator
from types import CodeType
from typing import Any, Self

from strop.errors import ConfigError

PREFERENCES = ("DPO", "KTO", "ORPO", "CPO", "BCO")
OWN_PAIRS = ("OnlineDPO", "NashMD", "XPO")
GROUPS = ("GRPO", "RLOO")
ONLINE = (*GROUPS, *OWN_PAIRS, "PPO", "GKD")
LOSS = "loss(scores, batch, step) -> LossOutput, from which training and evaluation take their loss"

UNCALLED: dict[str, dict[tuple[str, ...], str]] = {
    LOSS: {
        (): "compute_loss compute_liger_loss _compute_loss _compute_policy_loss compute_loss_func _compute_liger_loss",
        PREFERENCES: "dpo_loss kto_loss bco_loss cpo_loss odds_ratio_loss get_batch_loss_metrics _compute_loss_liger "
        "_compute_loss_dpo",
        OWN_PAIRS: "_compute_losses",
        GROUPS: "get_off_policy_mask get_high_entropy_mask get_gamma_weights",
        ("GKD",): "generalized_jsd_loss _compute_distillation_loss",
        ("SFT", "GKD"): "dft_loss _chunked_ce_forward",
    },
    f"{LOSS}, and predictions(scores, batch) for compute_metrics": {(): "prediction_step"},
    "facts(args, given), whose `convert` and `tokenize` say how rows become examples; or give rows that hold ids": {
        PREFERENCES: "process_row build_tokenized_answer concatenated_inputs",
        (*PREFERENCES, *OWN_PAIRS, "PRM"): "tokenize_row",
        (*PREFERENCES, "SFT", "GKD", "Reward"): "_prepare_dataset",
        ONLINE: "_tokenize _tokenize_prompts _tokenize_prompts_untruncated tokenize_batch",
        ("SFT", "GKD"): "_prepare_packed_dataloader _prepare_non_packed_dataloader",
    },
    "prepare_step(examples), which sees all rows of an optimizer step": {
        (): "_prepare_inputs _prepare_input _get_train_sampler _get_eval_sampler _get_dataloader "
        "_get_num_items_in_batch",
    },
    "score(model, batch, log), which gives the per-token log-probs of the policy": {
        PREFERENCES: "concatenated_forward get_batch_logps _compute_kl_logps",
        ("KTO", "BCO"): "forward",
        ONLINE: "_get_per_token_logps _get_per_token_logps_and_entropies _get_sequence_logps _get_last_hidden_state "
        "_forward_logits batched_forward_pass",
        OWN_PAIRS: "_forward _compute_logprobs",
    },
    "the argument ref_model, or reference_in_loss": {
        PREFERENCES: "compute_reference_log_probs compute_ref_log_probs _compute_ref_log_probs _precompute_ref_logps",
        (*PREFERENCES, "PPO"): "null_ref_context",
    },
    "the argument rollout_func, or rollout(prompts, n, training=...)": {
        ONLINE: "_generate _generate_single_turn _generate_and_score_completions _generate_completions _generate_vllm "
        "_generate_vllm_server _generate_vllm_colocate _generate_transformers _generate_completion_ids "
        "_generate_with_model _process_completions _tool_call_loop _move_model_to_vllm",
        PREFERENCES: "generate_from_model generate_from_model_and_ref",
        ("GKD",): "generate_on_policy_outputs",
    },
    "the argument reward_funcs, or score_groups(groups, mode)": {
        ONLINE: "_calculate_rewards _calculate_rewards_from_functions _compute_judge _compute_rewards compute_rewards",
    },
    "advantages(groups) of GRPO and RLOO, or loss(scores, batch, step)": {
        ONLINE: "_compute_advantage _compute_advantages compute_advantages",
    },
    "the metrics of what loss(scores, batch, step) returns, or log(logs)": {
        PREFERENCES: "store_metrics",
        ONLINE: "_log_metrics _log_metric record_step_stats",
        OWN_PAIRS: "_log_statistics",
    },
    "the argument teacher_model, or context(batch, work, training)": {("GKD",): "_get_teacher_logits"},
    "the argument embedding_func, or loss(scores, batch, step)": {
        PREFERENCES: "match_underlying_distribution _get_chosen_prob _get_prompt_embeddings _vectorize_prompt",
    },
}
"""What to override, or to give, here -> the trainers elsewhere (none named: all) -> their methods in its place.

Under the trainers of other methods a name is free: a helper that a script calls itself. So it is where the script's
override of what stands in its place calls it.
"""

CALLERS = {name: trainers for named in UNCALLED.values() for trainers, text in named.items() for name in text.split()}
HOOKS = {name: hook for hook, named in UNCALLED.items() for text in named.values() for name in text.split()}


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
            inherited = str(getattr(code, "__module__", "")).startswith("transformers.")
            if name in names and not inherited and not is_helper(cls, name):
                yield name


def is_helper(cls: type, name: str) -> bool:
    """Whether a script's override of what `HOOKS` has in a method's place calls that method."""
    hooks = [word.split("(")[0] for word in HOOKS[name].split() if "(" in word]
    scripts = [vars(base) for base in cls.__mro__ if not base.__module__.startswith(("strop.", "transformers."))]
    codes = [getattr(script.get(hook), "__code__", None) for script in scripts for hook in hooks]
    return any(reads(code, name) for code in codes if code is not None)


def reads(code: CodeType, name: str) -> bool:
    """Whether a function, or one inside it, reads an attribute of that name."""
    steps = dis.get_instructions(code)
    return any(step.opname in ("LOAD_ATTR", "LOAD_METHOD") and step.argval == name for step in steps) or any(
        reads(inner, name) for inner in code.co_consts if isinstance(inner, CodeType)
    )


def expected(cls: type) -> set[str]:
    """The names of `HOOKS` that another library calls in its trainers of this class's methods."""
    methods = {base.__name__.removesuffix("Trainer") for base in cls.__mro__ if base.__module__.startswith("strop.")}
    return {name for name, callers in CALLERS.items() if not methods.isdisjoint(callers or methods)}
