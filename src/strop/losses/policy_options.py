"""The options of the policy losses: which there are, and what each means for each loss type. No tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from strop.errors import ConfigError
from strop.losses.names import (
    CISPO_CAPS,
    IMPORTANCE_SAMPLING_LEVELS,
    IMPORTANCE_SAMPLING_MODES,
    KL_ESTIMATORS,
    POLICY_LOSS_TYPES,
    POLICY_OPTIONS,
    check_name,
    check_option,
    check_range,
)


def policy_level(loss_type: str, importance_sampling_level: str | None = None) -> str:
    """The level of the importance ratio, `token` or `sequence`; None means the loss type's own."""
    check_name(loss_type, POLICY_LOSS_TYPES, "loss_type")
    if importance_sampling_level is None:
        return "sequence" if loss_type == "luspo" else "token"
    check_name(importance_sampling_level, IMPORTANCE_SAMPLING_LEVELS, "importance_sampling_level")
    check_option(POLICY_OPTIONS, f"importance_sampling_level={importance_sampling_level}", loss_type)
    return importance_sampling_level


def sampler_mode(loss_type: str, importance_sampling_mode: str | None = None) -> str:
    """The kind of sampler correction (`sampler_weights`); None: `sequence_mask`, or `token_truncate` for vespo.

    VESPO multiplies up the weights of a completion itself, so it takes those of single tokens only.
    """
    if importance_sampling_mode is None:
        return "token_truncate" if loss_type == "vespo" else "sequence_mask"
    check_name(importance_sampling_mode, IMPORTANCE_SAMPLING_MODES, "importance_sampling_mode")
    if importance_sampling_mode.startswith("sequence"):
        check_option(POLICY_OPTIONS, "importance_sampling_mode=sequence", loss_type)
    return importance_sampling_mode


@dataclass(frozen=True, slots=True)
class PolicyOptions:
    """What `policy_loss_flat` may be told; checked when it is made.

    Raises:
        ConfigError: an unknown name, an option without a meaning for the loss type, a value out of range.
    """

    loss_type: str = "grpo"  # one of `POLICY_LOSS_TYPES`
    importance_sampling_level: str | None = None  # token or sequence; None: sequence for luspo, token for the others
    epsilon: float = 0.2  # the clip range is [1 - epsilon, 1 + epsilon_high]
    epsilon_high: float | None = None  # None: epsilon
    delta: float | None = None  # upper bound of the ratio where A < 0, above 1 + epsilon_high; None: none
    beta: float = 0.0  # weight of the KL term
    kl_estimator: str = "k3"  # see `kl_estimate`
    use_bias_correction_kl: bool = False  # multiply the KL term by r, with gradient: k3 then follows KL(pi || mu)
    importance_sampling_mode: str | None = None  # the three of the sampler correction: see `sampler_weights`
    importance_sampling_clip_max: float | None = 3.0
    importance_sampling_clip_min: float | None = None
    cispo_cap: str = "relative"  # caps r at 1 + epsilon_high; absolute: at epsilon_high, which is TRL's reading
    sapo_temperature_pos: float = 1.0  # see `sapo_loss`
    sapo_temperature_neg: float = 1.05
    vespo_k_pos: float = 2.0  # see `vespo_gate`
    vespo_lambda_pos: float = 3.0
    vespo_k_neg: float = 3.0
    vespo_lambda_neg: float = 2.0

    def __post_init__(self) -> None:
        policy_level(self.loss_type, self.importance_sampling_level)
        sampler_mode(self.loss_type, self.importance_sampling_mode)
        check_name(self.kl_estimator, KL_ESTIMATORS, "kl_estimator")
        check_name(self.cispo_cap, CISPO_CAPS, "cispo_cap")
        check_range(self.epsilon, "epsilon", 0.0, math.inf)
        check_range(self.upper, "epsilon_high", 0.0, math.inf)
        if self.cispo_cap != "relative":
            check_option(POLICY_OPTIONS, "cispo_cap", self.loss_type)
        if self.delta is not None:
            check_option(POLICY_OPTIONS, "delta", self.loss_type)
            if self.delta <= 1 + self.upper:
                above = f"set it above {1 + self.upper}"
                raise ConfigError(f"delta is {self.delta}, but it bounds what clipping leaves: {above}.")

    @property
    def level(self) -> str:
        """The level of the importance ratio, token or sequence."""
        return policy_level(self.loss_type, self.importance_sampling_level)

    @property
    def upper(self) -> float:
        """The upper width of the clip range."""
        return self.epsilon if self.epsilon_high is None else self.epsilon_high

    @property
    def cap(self) -> float:
        """Where CISPO caps the ratio."""
        return 1 + self.upper if self.cispo_cap == "relative" else self.upper

    @property
    def correction(self) -> dict[str, Any]:
        """Keyword arguments of `sampler_weights`."""
        return {
            "mode": sampler_mode(self.loss_type, self.importance_sampling_mode),
            "clip_max": self.importance_sampling_clip_max,
            "clip_min": self.importance_sampling_clip_min,
        }

    @property
    def vespo(self) -> dict[str, Any]:
        """Keyword arguments of `vespo_gate`."""
        return {
            "k_pos": self.vespo_k_pos,
            "lambda_pos": self.vespo_lambda_pos,
            "k_neg": self.vespo_k_neg,
            "lambda_neg": self.vespo_lambda_neg,
        }


def check_policy_options(loss_type: str, **options: Any) -> None:
    """Raise `ConfigError` where `policy_loss` would, for the fields of `PolicyOptions`."""
    PolicyOptions(loss_type, **options)
