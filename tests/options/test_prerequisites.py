"""A setting that acts only beside another one is refused without it, and says what it needs."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.flips import own_fields, value_of
from tests.support.option_table import entry

import strop
from strop.errors import ConfigError
from strop.methods.registry import METHODS
from strop.testing.cases import CASES, method_of

ALONE = {
    **dict.fromkeys(
        ("learning_rate", "max_length", "temperature", "beta", "kl_estimator", "scale_rewards", "truncation_mode",
         "disable_dropout", "total_episodes", "cliprange_value", "logging_nan_inf_filter", "padding_free",
         "reward_timeout", "dynamic_sampling", "loss_weights", "scale_by_t2", "log_completions", "eos_token",
         "max_staleness", "stream_prompts"),
        "acts alone; the surroundings make it visible, or quick",
    ),
    **dict.fromkeys(
        ("importance_sampling_level", "epsilon", "epsilon_high", "delta", "off_policy_mask_threshold"),
        "acts as soon as completions are used twice, by steps_per_generation, num_iterations or vLLM",
    ),
    **dict.fromkeys(
        ("generate_during_eval", "num_generations_eval", "eval_packing", "max_eval_rows"),
        "evaluate() may be called by hand",
    ),
    **dict.fromkeys(("missing_eos_penalty", "mask_truncated_completions"), "acts where completions are cut"),
    **dict.fromkeys(
        ("max_tool_calling_iterations", "tool_timeout", "tools_at_once", "environment_isolation", "past_turns",
         "advantage_level"),
        "needs tools or environments, which the trainer is given",
    ),
    "max_density_ratio": "needs embedding_func, which the trainer is given",
    "use_adaptive_entropy": "starts from any coefficient",
    "shuffle_dataset": "shuffles before packing too",
    **dict.fromkeys(("cispo_cap", "alpha"), "refused with a sentence of its own by the loss"),
}  # fmt: skip
"""Fields that the option table moves in surroundings of their own, though they need no other setting."""


def surrounded(case: str) -> list[tuple[str, Any]]:
    """Fields of a case's config that the option table moves beside other settings, with how."""
    config_class = method_of(case).config()
    moved = [(name, entry(case, config_class, name)) for name in own_fields(config_class)]
    return [(name, flip) for name, flip in moved if flip.given and flip.seen != "error"]


MET = {
    ("gkd", "seq_kd"): {"lmbda": 1.0},
    ("bco", "delta_mode"): {"loss_type": "discriminator"},
    ("bco", "delta_decay"): {"delta_mode": "cumulative_pooled"},
    ("nash-md", "gradient_form"): {"objective": "adversarial"},
    ("rloo", "sync_ref_model"): {"beta": 0.0},
    ("rloo", "ref_adapter_name"): {"beta": 0.0},
}
"""Fields whose prerequisite is met by the defaults -> settings without it."""
PAIRS = [
    (case, name)
    for case in CASES
    for name, _ in surrounded(case)
    if name not in ALONE and name not in {field for _, field in MET}
]


@pytest.mark.parametrize(("case", "name"), PAIRS)
def test_a_setting_says_what_it_needs(case: str, name: str) -> None:
    config_class = method_of(case).config()
    flip = dict(surrounded(case))[name]
    value = value_of(flip, config_class, name)
    config_class(use_cpu=True, **{**flip.given, name: value})
    with pytest.raises(ConfigError, match=rf"{name}=.* has no effect unless (.*); .*remove {name}\."):
        config_class(use_cpu=True, **{name: value})


@pytest.mark.parametrize(("case", "name"), MET)
def test_a_setting_that_others_switch_off_says_so(case: str, name: str) -> None:
    config_class = method_of(case).config()
    given = {name: value_of(entry(case, config_class, name), config_class, name)}
    config_class(use_cpu=True, **given)
    with pytest.raises(ConfigError, match=rf"{name}=.* has no effect unless"):
        config_class(use_cpu=True, **given, **MET[case, name])


def test_every_declared_need_is_tried() -> None:
    declared = {name for method in METHODS for name in method.config().needs}
    assert declared == {name for _, name in [*PAIRS, *MET]}


@pytest.mark.parametrize(
    ("given", "needed"),
    [
        (
            {"vllm_server_port": 1},
            "vllm_mode is 'server' and engine is 'vllm'; vllm_mode is 'colocate', engine is 'auto'",
        ),
        ({"vllm_server_port": 1, "use_vllm": True}, "vllm_mode is 'server'; vllm_mode is 'colocate'"),
        (
            {"vllm_server_port": 1, "use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": "http://a:2"},
            "vllm_server_base_url is None; vllm_server_base_url is 'http://a:2'",
        ),
    ],
)
def test_needs_are_followed_along_a_chain(given: dict[str, Any], needed: str) -> None:
    with pytest.raises(ConfigError) as error:
        strop.GRPOConfig(**given)
    assert f"vllm_server_port=1 has no effect unless {needed}." in str(error.value)


def test_one_of_several_is_enough() -> None:
    """A list of losses, either packing, a coefficient that changes by epoch."""
    strop.DPOConfig(loss_type=["sigmoid", "discopop"], discopop_tau=0.2)
    strop.SFTConfig(eval_packing=True, packing_strategy="wrapped")
    strop.OnlineDPOConfig(beta=[0.2, 0.1], sync_ref_model=True)


def test_one_engine_is_named() -> None:
    assert strop.GRPOConfig(use_vllm=True).engine == "vllm"
    with pytest.raises(ConfigError, match="use_vllm=True and engine='native' exclude each other"):
        strop.GRPOConfig(use_vllm=True, engine="native")
