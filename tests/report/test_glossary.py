"""The glossary against what runs really log: names that scripts know are there, and no entry explains nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest

from strop.methods.registry import METHODS
from strop.metric import FAMILIES, Entry, entries_of
from strop.report.glossary import GLOSSARY, lookup
from strop.testing.cases import ONLINE, make_trainer, rows_for

COMMON = ["loss", "grad_norm", "learning_rate", "epoch", "num_tokens", "step_time", "rows_time", "memory_peak"]
TOKENS = ["entropy", "mean_token_accuracy"]
SIDES = [f"{kind}/{side}" for kind in ("rewards", "logps") for side in ("chosen", "rejected")] + ["rewards/margins"]
LOGITS = ["logits/chosen", "logits/rejected"]
CLIPPING = [f"clip_ratio/{name}" for name in ("low_mean", "low_min", "high_mean", "high_max", "region_mean")]
GROUPS = [
    *[f"completions/{which}_{what}" for which in ("mean", "min", "max") for what in ("length", "terminated_length")],
    "completions/clipped_ratio", "rewards/letters_reward/mean", "rewards/letters_reward/std", "reward", "reward_std",
    "frac_reward_zero_std", "entropy", "kl", "sampling/sampling_logp_difference/mean",
    "sampling/sampling_logp_difference/max", "sampling/importance_sampling_ratio/mean",
    "sampling/importance_sampling_ratio/min", "sampling/importance_sampling_ratio/max",
]  # fmt: skip
OPPONENT = [*SIDES, "rewards/accuracies", "objective/entropy", "beta", "val/model_contain_eos_token"]
OPPONENT += ["val/ref_contain_eos_token"]
OBJECTIVE = [f"objective/{name}" for name in ("kl", "entropy", "non_score_reward", "rlhf_reward", "scores")]
CASES: list[tuple[str, dict[str, Any], list[str]]] = [
    ("sft", {}, TOKENS),
    ("sft", {"arch": "qwen3_moe", "router_aux_loss_coef": 0.01}, ["aux_loss"]),
    ("reward", {}, ["min_reward", "mean_reward", "max_reward", "accuracy", "margin"]),
    ("dpo", {}, [*TOKENS, *SIDES, *LOGITS, "rewards/accuracies"]),
    ("dpo", {"loss_type": ["exponential", "sft"]}, ["exponent_clamped_ratio"]),
    ("kto", {}, ["kl", "entropy", *SIDES, *LOGITS]),
    ("orpo", {}, [*SIDES, *LOGITS, "rewards/accuracies", "nll_loss", "log_odds_ratio", "log_odds_chosen"]),
    ("cpo", {}, [*SIDES, *LOGITS, "rewards/accuracies", "nll_loss"]),
    ("bco", {}, ["delta", *SIDES, *LOGITS]),
    ("xpo", {}, [*TOKENS, *SIDES, *LOGITS, "rewards/accuracies", "exponent_clamped_ratio"]),
    ("prm", {}, ["accuracy", "first_error_accuracy"]),
    ("gkd", {}, [*TOKENS, "jsd", "on_policy_fraction"]),
    ("grpo", {"beta": 0.1}, [*GROUPS, *CLIPPING, "sampling_time", "rewards_time"]),
    ("grpo", {"loss_type": "cispo"}, ["cispo_clip_ratio"]),
    ("grpo", {"loss_type": "vespo"}, ["vespo/phi_seq_mean"]),
    ("grpo", {"entropy_coef": 0.1, "dynamic_sampling": True}, ["policy_loss", "entropy_coef", *CLIPPING]),
    ("rloo", {}, [*GROUPS, *CLIPPING]),
    ("online-dpo", {}, [*OBJECTIVE, "objective/scores_margin", *SIDES, "rewards/accuracies", "beta"]),
    (
        "ppo",
        {},
        [
            *OBJECTIVE, "policy/approxkl_avg", "policy/clipfrac_avg", "policy/entropy_avg", "loss/policy_avg",
            "loss/value_avg", "val/clipfrac_avg", "val/ratio", "val/ratio_var", "val/num_eos_tokens", "eps", "episode",
        ],
    ),
    ("nash-md", {}, ["loss/kl", "loss/score", "rewards/probabilities", "mixture_coef", *OPPONENT]),
    (
        "xpo-online",
        {},
        [
            "loss/dpo", "loss/xpo", "objective/kl", "objective/model_scores", "objective/ref_scores",
            "objective/scores_margin", "alpha", "pairs/dropped_ratio", *OPPONENT,
        ],
    ),
]  # fmt: skip
"""Method, settings, and the names that dashboards made for TRL read (its `lr` is `learning_rate` here)."""
ONLY_TRAINING = (
    "sampling_time",
    "rewards_time",
    *COMMON[1:],
    "aux_loss",
    "on_policy_fraction",
    "eps",
    "dynamic_sampling/kept_ratio",
)
CONVERSATIONS = ("mean_count", "answer_tokens", "rolled_back", "forked", "rewritten", "failed", "respelled")
ELSEWHERE = (
    "tools/call_frequency", "tools/failure_frequency", *(f"turns/{name}" for name in CONVERSATIONS),
    "held_out_accuracy", "rewards/*/*_fraction", "staleness/*", "turns/unseen", "turns/left_behind",
    "pairs/apart_ratio",
)  # fmt: skip
"""Logged by runs with tools, by `strop demo`, where a reward failed, and where rounds are sampled ahead; where a client
did not wait (tests/agents/test_unseen_answers.py), and where contexts differ (tests/online/test_one_context.py)."""


OWN: dict[str, tuple[Entry, ...]] = {method.prefix.lower(): entries_of(method.trainer()) for method in METHODS}
"""Method -> what its class and those it builds on explain."""
EVERY = dict.fromkeys((*GLOSSARY, *(entry for own in OWN.values() for entry in own)))


def explained(key: str, method: str) -> Entry | None:
    return lookup(key, OWN.get(method, ()))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, set[str], set[str]]]:
    """Of every case: method, keys of its training lines, keys of its evaluation lines."""
    found = []
    for verb, settings, _ in CASES:
        folder, rows = tmp_path_factory.mktemp(verb), rows_for(verb, 4)
        early_ends = {"stop_token_ids": list(range(4, 200, 6))} if verb in ONLINE else {}
        trainer = make_trainer(verb, folder, rows=rows, eval_rows=rows, max_steps=1, **early_ends, **settings)
        trainer.train()
        trainer.evaluate()
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        keys = {key for line in lines for key in line} - {"step"}
        evaluated = {key for key in keys if key.startswith("eval_")}
        found.append((trainer.args.method, keys - evaluated, {key.removeprefix("eval_") for key in evaluated}))
    return found


def test_what_scripts_know_is_logged(runs: list[tuple[str, set[str], set[str]]]) -> None:
    for (verb, settings, names), (_, trained, evaluated) in zip(CASES, runs, strict=True):
        missing = [name for name in [*COMMON, *names] if name not in trained]
        missing += [f"eval_{n}" for n in ["loss", *names] if n not in evaluated and n not in ONLY_TRAINING]
        assert not missing, f"{verb} {settings}: {missing}"


def test_what_is_logged_is_explained(runs: list[tuple[str, set[str], set[str]]]) -> None:
    unknown = {(method, key) for method, *keys in runs for key in set.union(*keys) if explained(key, method) is None}
    assert not unknown


def test_what_is_explained_is_logged(runs: list[tuple[str, set[str], set[str]]]) -> None:
    logged = {explained(key, method) for method, *keys in runs for key in set.union(*keys)}
    never = [entry.key for entry in EVERY if entry not in logged and entry.key not in ELSEWHERE]
    assert not never, f"no run logs {never}"


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
    for entry in EVERY:
        assert entry.family in FAMILIES and entry.unit and entry.per
        assert entry.meaning.endswith(".") and len(entry.meaning) > 15, entry.key
        assert entry.low is None or entry.high is None or entry.low < entry.high, entry.key
        assert not entry.advice or entry.advice.endswith("."), entry.key
        owner = next((method for method, own in OWN.items() if entry in own), "none-of-them")
        example = entry.key.replace("*", "x")
        assert explained(example, owner) is entry, f"{entry.key} is hidden by an earlier entry"


def test_meaning_depends_on_the_method() -> None:
    assert "labelled step" in explained("accuracy", "prm").per and "pair" in explained("accuracy", "reward").per
    assert "mismatched" in explained("kl", "kto").meaning and "mismatched" not in explained("kl", "grpo").meaning
    assert "advantage" in explained("loss", "rloo").meaning, "what its base says"


def test_names_of_evaluation_sets_are_ignored() -> None:
    assert lookup("eval_hard_words_rewards/margins") is lookup("rewards/margins")
    assert lookup("eval_loss") is lookup("loss")


def test_unknown_keys_have_no_entry() -> None:
    assert lookup("my_own_metric") is None and lookup("eval_my_own_metric") is None


def test_range_in_words() -> None:
    assert explained("val/ratio", "ppo").range_text == "0.9 to 1.1; 1 at the first update"
    assert lookup("rewards/margins").range_text.startswith("at least 0;")
    assert lookup("completions/clipped_ratio").range_text == "at most 0.2"
    assert lookup("epoch").range_text == ""
