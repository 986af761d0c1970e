"""The names that losses go by, and which options each of them takes: data only, importable without torch.

Configs, command-line help and docs read these tuples; the losses check against the same ones, so a name or a
combination that is accepted in one place is accepted in all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from strop.errors import ConfigError, did_you_mean

SFT_LOSS_TYPES = ("nll", "dft")

DPO_LOSS_TYPES = (
    "sigmoid",
    "robust",
    "hinge",
    "ipo",
    "sigmoid_norm",
    "exo_pair",
    "nca_pair",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "exponential",
)
"""What `dpo_loss` computes, one value per pair."""

DPO_TERM_TYPES = (*DPO_LOSS_TYPES, "sft")
"""What a DPO config may mix: the pair losses, and `sft`, the token mean of `nll_loss` over the chosen completions."""

DPO_BATCH_LOSS_TYPES = ("aot", "aot_unpaired")
"""Pair losses that sort over the step: `dpo_loss` must see all its pairs at once, `aot_loss` one micro-batch."""

F_DIVERGENCES = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")
F_DIVERGENCE_ALIASES = {"js": "js_divergence", "alpha": "alpha_divergence"}

DPO_OPTIONS: dict[str, tuple[str, ...]] = {
    "label_smoothing": ("sigmoid", "sigmoid_norm", "robust", "exo_pair", "aot", "aot_unpaired"),
    "f_divergence": ("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "exponential"),
    "length_norm": ("ipo", "sigmoid_norm"),
    "use_weighting": tuple(name for name in DPO_LOSS_TYPES if name not in DPO_BATCH_LOSS_TYPES),
}
"""DPO option -> the loss types that it has a meaning for.

Divergences other than the reverse KL need a loss of the difference s(u_w) - s(u_l), where the unknown log Z(x)
cancels. WPO weights belong to a pair, and AOT tears pairs apart by sorting.
"""

KTO_LOSS_TYPES = ("kto", "apo_zero_unpaired", "kto_exp", "kto_literal")
KTO_CLASS_MEAN_TYPES = ("kto_exp", "kto_literal")
"""KTO losses that are a mean over desirable rows plus a mean over undesirable rows (`class_terms`)."""
KTO_KL_TYPES = ("kto", "kto_exp")
"""KTO losses that use the reference point, and so need the mismatched completions."""

CPO_LOSS_TYPES = ("sigmoid", "hinge", "ipo", "simpo", "alphapo")
CPO_TERM_TYPES = (*CPO_LOSS_TYPES, "contrastive_hidden")
CPO_AVERAGED_TYPES = ("ipo", "simpo", "alphapo")
"""CPO losses of length-averaged log-probs."""
CPO_OPTIONS: dict[str, tuple[str, ...]] = {
    "label_smoothing": ("sigmoid", "simpo", "alphapo"),
    "simpo_gamma": ("simpo", "alphapo"),
    "alpha": ("ipo", "simpo", "alphapo"),
}
"""CPO option -> the loss types that it has a meaning for. AlphaPO's transform of a summed log-prob overflows."""
CONTRASTIVE_NEGATIVES = ("pair", "in_batch")

BCO_LOSS_TYPES = ("bco", "discriminator")
BCO_DELTA_MODES = ("ema_balanced", "cumulative_pooled")

POLICY_LOSS_TYPES = ("grpo", "dapo", "dr_grpo", "bnpo", "cispo", "sapo", "luspo", "vespo")
CLIPPED_LOSS_TYPES = ("grpo", "dapo", "dr_grpo", "bnpo", "luspo")
"""Policy losses made of the clipped surrogate; they differ in how tokens are added up (`POLICY_AGGREGATION`)."""

POLICY_OPTIONS: dict[str, tuple[str, ...]] = {
    "delta": CLIPPED_LOSS_TYPES,
    "importance_sampling_level=token": ("grpo", "dapo", "dr_grpo", "bnpo", "cispo", "sapo", "vespo"),
    "importance_sampling_level=sequence": CLIPPED_LOSS_TYPES,
    "importance_sampling_mode=sequence": tuple(name for name in POLICY_LOSS_TYPES if name != "vespo"),
    "cispo_cap": ("cispo",),
}
"""Policy-loss option -> the loss types that it has a meaning for."""

POLICY_AGGREGATION = {
    "grpo": "seq_mean_token_mean",
    "dapo": "token_mean_global",
    "dr_grpo": "constant",
    "bnpo": "token_mean_global",
    "cispo": "token_mean_global",
    "sapo": "seq_mean_token_mean",
    "luspo": "seq_mean_token_sum",
    "vespo": "token_mean_global",
}
"""How each policy loss adds up its tokens. `bnpo` is published as a mean over the tokens of a micro-batch, which makes
the gradient depend on how rows were split; here it is the mean over all tokens of the step, and so equals `dapo`."""

AGGREGATIONS = ("token_mean_global", "seq_mean_token_mean", "seq_mean_token_sum", "constant")
IMPORTANCE_SAMPLING_LEVELS = ("token", "sequence")
IMPORTANCE_SAMPLING_MODES = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
CISPO_CAPS = ("relative", "absolute")
KL_ESTIMATORS = ("k1", "k2", "k3")

SCALE_REWARDS = ("group", "batch", "none")
MULTI_OBJECTIVE_AGGREGATIONS = ("sum_then_normalize", "normalize_then_sum")

XPO_LOSS_TYPES = ("sigmoid", "ipo")
NASH_MD_FORMS = ("reward_to_go", "sequence", "trl")
STEP_SCORE_MODES = ("min", "product")


def check_name(value: str, allowed: Sequence[str], option: str) -> None:
    """Raise `ConfigError` unless `value` is one of `allowed`."""
    if value not in allowed:
        known = ", ".join(repr(name) for name in allowed)
        raise ConfigError(
            f"{option} is {value!r}, which is not known; use one of {known}.{did_you_mean(value, allowed)}"
        )


def check_option(options: Mapping[str, Sequence[str]], option: str, loss_type: str) -> None:
    """Raise `ConfigError` unless `option` has a meaning for `loss_type` by the table `options`."""
    if loss_type not in options[option]:
        known = ", ".join(repr(name) for name in options[option])
        raise ConfigError(
            f"{option} has no meaning for loss_type {loss_type!r}; it belongs to {known}. "
            f"Remove {option}, or change the loss_type."
        )


def check_range(value: float, option: str, low: float, high: float, *, closed_high: bool = False) -> None:
    """Raise `ConfigError` unless low <= value < high (<= high with `closed_high`)."""
    if not (low <= value < high or (closed_high and value == high)):
        bracket = "]" if closed_high else ")"
        raise ConfigError(f"{option} is {value!r}; it must lie in [{low}, {high}{bracket}.")
