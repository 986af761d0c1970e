"""What scripts for TRL write out: its defaults, its names, its forms. Each makes a config that says the same."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import HfArgumentParser

import strop
from strop.errors import ConfigError
from strop.methods.registry import METHODS

WRITTEN_OUT: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("trl_written_out.json").read_text())
"""Config -> its own fields with TRL's defaults, as a script may write them out."""


def made(name: str, **values: Any) -> Any:
    return getattr(strop, name)(output_dir="runs/x", use_cpu=True, **values)


@pytest.mark.parametrize("name", sorted(WRITTEN_OUT))
def test_the_defaults_of_trl_are_accepted_one_by_one_and_together(name: str) -> None:
    refused = {}
    for field, value in WRITTEN_OUT[name].items():
        try:
            made(name, **{field: value})
        except ConfigError as error:
            refused[field] = str(error)
    assert not refused
    made(name, **WRITTEN_OUT[name])


def test_a_setting_that_is_not_used_is_refused_once_it_asks_for_something() -> None:
    for field, value in (("vllm_tensor_parallel_size", 2), ("pad_to_multiple_of", 8), ("is_encoder_decoder", True)):
        with pytest.raises(ConfigError, match=field):
            made("GRPOConfig", **{field: value})


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.verb)
def test_transformers_parser_takes_every_config(method: Any) -> None:
    words = ["--output_dir", "runs/x", "--use_cpu", "True", "--learning_rate", "1e-5", "--max_completion_length", "33"]
    (args,) = HfArgumentParser(method.config()).parse_args_into_dataclasses(words)
    assert (args.learning_rate, args.max_completion_length) == (1e-5, 33)


def test_a_list_of_one_per_epoch_is_that_one() -> None:
    words = ["--output_dir", "runs/x", "--use_cpu", "True", "--beta", "0.2"]
    (args,) = HfArgumentParser(strop.OnlineDPOConfig).parse_args_into_dataclasses(words)
    assert args.beta == 0.2
    assert made("OnlineDPOConfig", beta=[0.2, 0.1]).beta == [0.2, 0.1]
    with pytest.raises(ConfigError, match="beta"):
        made("OnlineDPOConfig", beta=[0.2, -1.0])


def test_single_values_stand_for_lists() -> None:
    args = made("GRPOConfig", stop="</answer>", stop_token_ids=7)
    assert (args.stop, args.stop_token_ids) == (["</answer>"], [7])


@pytest.mark.parametrize(("given", "read"), [(True, "group"), (False, "none"), ("False", "none"), ("batch", "batch")])
def test_scale_rewards_in_all_its_forms(given: Any, read: str) -> None:
    assert made("GRPOConfig", scale_rewards=given).scale_rewards == read


def test_generation_kwargs_set_what_they_name() -> None:
    inside = {"top_p": 0.9, "stop_strings": ["x"], "max_new_tokens": 5, "eos_token_id": 3}
    args = made("GRPOConfig", top_p=0.5, generation_kwargs=inside)
    assert (args.top_p, args.stop, args.max_completion_length, args.stop_token_ids) == (0.9, ["x"], 5, [3])
    assert made("GRPOConfig", generation_kwargs={}).top_p == 1.0
    anyway = {"do_sample": True, "num_beams": 1, "use_cache": True}
    assert made("GRPOConfig", generation_kwargs={**anyway, "top_p": 0.4}).top_p == 0.4
    assert made("GRPOConfig", generation_kwargs=anyway).top_p == 1.0
    with pytest.raises(ConfigError, match="do_sample"):
        made("GRPOConfig", generation_kwargs={"do_sample": False})
    with pytest.raises(ConfigError, match="It may hold temperature"):
        made("GRPOConfig", generation_kwargs={"num_beams": 4})


def test_a_setting_is_read_by_its_other_names() -> None:
    args = made("PPOConfig", response_length=9, sft_model_path="m")
    assert args.response_length == args.max_new_tokens == args.max_completion_length == 9
    assert args.sft_model_path == "m"
    with pytest.raises(AttributeError, match="Did you mean 'learning_rate'"):
        _ = args.learning_rat
    assert dataclasses.replace(args, learning_rate=3e-5).max_completion_length == 9


def test_a_share_of_warm_up_steps_has_two_names() -> None:
    assert made("SFTConfig", warmup_ratio=0.1).warmup_steps == 0.1
