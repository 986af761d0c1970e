import pytest

from strop.report.glossary import FAMILIES, GLOSSARY, lookup, split_evaluation

COMMON = ["loss", "grad_norm", "learning_rate", "epoch", "num_tokens"]
IMPLICIT = ["rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected"]
LOGITS = ["logits/chosen", "logits/rejected"]
GROUPS = [
    "step_time", "completions/mean_length", "completions/min_length", "completions/max_length",
    "completions/mean_terminated_length", "completions/min_terminated_length", "completions/max_terminated_length",
    "completions/clipped_ratio", "rewards/my_reward/mean", "rewards/my_reward/std", "reward", "reward_std",
    "frac_reward_zero_std", "entropy", "kl", "clip_ratio/low_mean", "clip_ratio/low_min", "clip_ratio/high_mean",
    "clip_ratio/high_max", "clip_ratio/region_mean",
]  # fmt: skip
OPPONENT = [
    "objective/entropy",
    "rewards/accuracies",
    "val/model_contain_eos_token",
    "val/ref_contain_eos_token",
    "beta",
]
LOGGED = {
    "sft": ["entropy", "mean_token_accuracy", "aux_loss"],
    "reward": ["min_reward", "mean_reward", "max_reward", "accuracy", "margin"],
    "dpo": ["entropy", "mean_token_accuracy", "rewards/accuracies", "aux_loss", *IMPLICIT, *LOGITS],
    "kto": ["kl", "entropy", "aux_loss", *IMPLICIT, *LOGITS],
    "orpo": ["rewards/accuracies", "nll_loss", "log_odds_ratio", "log_odds_chosen", *IMPLICIT, *LOGITS],
    "cpo": ["rewards/accuracies", "nll_loss", *IMPLICIT, *LOGITS],
    "bco": ["delta", *IMPLICIT, *LOGITS],
    "grpo": [
        *GROUPS, "cispo_clip_ratio", "vespo/phi_seq_mean", "policy_loss", "entropy_coef", "aux_loss",
        "tools/call_frequency", "tools/failure_frequency", "sampling/sampling_logp_difference/mean",
        "sampling/sampling_logp_difference/max", "sampling/importance_sampling_ratio/min",
        "sampling/importance_sampling_ratio/mean", "sampling/importance_sampling_ratio/max",
    ],
    "rloo": GROUPS,
    "onlinedpo": [
        "objective/kl", "objective/entropy", "objective/non_score_reward", "objective/rlhf_reward", "objective/scores",
        "objective/scores_margin", "rewards/accuracies", "val/contain_eos_token", "beta", *IMPLICIT,
    ],
    "gkd": ["entropy", "mean_token_accuracy", "jsd", "kl/forward", "kl/reverse", "on_policy_fraction"],
    "ppo": [
        "eps", "objective/kl", "objective/entropy", "objective/non_score_reward", "objective/rlhf_reward",
        "objective/scores", "policy/approxkl_avg", "policy/clipfrac_avg", "policy/entropy_avg", "loss/policy_avg",
        "loss/value_avg", "val/clipfrac_avg", "val/ratio", "val/ratio_var", "val/num_eos_tokens", "lr", "episode",
    ],
    "nashmd": ["loss/kl", "loss/score", "rewards/probabilities", "mixture_coef", *IMPLICIT, *OPPONENT],
    "xpo": [
        "loss/dpo", "loss/xpo", "objective/kl", "objective/model_scores", "objective/ref_scores",
        "objective/scores_margin", "alpha", *IMPLICIT, *OPPONENT,
    ],
    "prm": ["accuracy", "first_error_accuracy"],
}  # fmt: skip
"""What each method logs, as scripts know it."""


@pytest.mark.parametrize("method", sorted(LOGGED))
def test_every_logged_metric_is_explained(method: str) -> None:
    missing = [key for key in COMMON + LOGGED[method] if lookup(key, method) is None]
    missing += [key for key in LOGGED[method] if lookup(f"eval_{key}", method) is not lookup(key, method)]
    assert not missing


def test_totals_and_speeds_are_explained() -> None:
    keys = [
        "train_runtime",
        "train_samples_per_second",
        "train_loss",
        "total_flos",
        "eval_runtime",
        "eval_steps_per_second",
    ]
    assert not [key for key in keys if lookup(key) is None]


def test_every_entry_is_complete_and_reachable() -> None:
    for entry in GLOSSARY:
        assert entry.family in FAMILIES and entry.unit and entry.per
        assert entry.meaning.endswith(".") and len(entry.meaning) > 15, entry.key
        assert entry.low is None or entry.high is None or entry.low < entry.high, entry.key
        assert not entry.advice or entry.advice.endswith("."), entry.key
        method = entry.methods[0] if entry.methods else "none-of-them"
        example = entry.key.replace("*", "x")
        assert lookup(example, method) is entry, f"{entry.key} is hidden by an earlier entry"


def test_meaning_depends_on_the_method() -> None:
    assert "labelled step" in lookup("accuracy", "prm").per
    assert "pair" in lookup("accuracy", "reward").per
    assert "mismatched" in lookup("kl", "kto").meaning and "mismatched" not in lookup("kl", "grpo").meaning


def test_names_of_evaluation_sets_are_ignored() -> None:
    assert lookup("eval_hard_words_rewards/margins", "dpo") is lookup("rewards/margins", "dpo")
    assert split_evaluation("eval_loss") == ("eval", "loss")
    assert split_evaluation("loss") == ("", "loss")


def test_unknown_keys_have_no_entry() -> None:
    assert lookup("my_own_metric") is None and lookup("eval_my_own_metric") is None


def test_range_in_words() -> None:
    assert lookup("val/ratio").range_text == "0.9 to 1.1; 1 at the first update"
    assert lookup("rewards/margins").range_text.startswith("at least 0;")
    assert lookup("completions/clipped_ratio").range_text == "at most 0.2"
    assert lookup("episode").range_text == ""
