from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from strop.errors import ConfigError, DataError
from strop.rollout import Mixture, SamplingParams
from strop.rollout.native import NativeGenerator
from strop.rollout.transformers_engine import TransformersGenerator
from strop.testing.tiny import tiny_model
from strop.testing.tokenizers import toy_tokenizer

GREEDY = SamplingParams(max_new_tokens=10, temperature=0, stop_token_ids=(2,))


@pytest.mark.parametrize("arch", ["llama", "gemma2", "bloom", "mamba"])
def test_greedy_equals_generate_row_by_row(arch: str, prompts: list[list[int]], greedy_reference: Callable) -> None:
    model = tiny_model(arch, dtype=torch.float32)
    rollout = TransformersGenerator(model, max_rows=5).generate(prompts, 2, GREEDY)
    assert rollout.completions == [[ids] * 2 for ids in greedy_reference(model, prompts, 10)]


@pytest.mark.parametrize(
    "settings",
    [{}, {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.02}, {"repetition_penalty": 1.3}],
)
def test_both_engines_draw_the_same_tokens(
    settings: dict[str, Any], llama: nn.Module, prompts: list[list[int]], largest_gap: Callable
) -> None:
    sampling = SamplingParams(max_new_tokens=12, stop_token_ids=(2, 3, 4, 5), seed=6, **settings)
    mine = NativeGenerator(llama).generate(prompts, 3, sampling)
    theirs = TransformersGenerator(llama, max_rows=7).generate(prompts, 3, sampling)
    assert theirs.completions == mine.completions
    assert theirs.finish_reasons == mine.finish_reasons
    assert largest_gap(theirs.sampler_logps, mine.sampler_logps) < 1e-5  # generate rounds logits to float32


def test_reported_logps_are_those_of_a_full_forward_pass(
    prompts: list[list[int]], forced_logps: Callable, largest_gap: Callable
) -> None:
    model = tiny_model("mamba", dtype=torch.float32)
    sampling = SamplingParams(max_new_tokens=8, temperature=0.8, top_k=20, stop_token_ids=(2,), seed=1)
    rollout = TransformersGenerator(model).generate(prompts, 2, sampling)
    assert largest_gap(rollout.sampler_logps, forced_logps(model, rollout, sampling)) < 1e-3


def test_the_models_own_generation_defaults_do_not_change_the_distribution(
    prompts: list[list[int]], forced_logps: Callable, largest_gap: Callable
) -> None:
    model = tiny_model("llama")
    defaults = model.generation_config
    defaults.update(repetition_penalty=3.0, no_repeat_ngram_size=1, top_k=2, do_sample=True, suppress_tokens=[5, 6])
    sampling = SamplingParams(max_new_tokens=8, stop_token_ids=(2,), seed=1)
    rollout = TransformersGenerator(model).generate(prompts, 2, sampling)
    assert largest_gap(rollout.sampler_logps, forced_logps(model, rollout, sampling)) < 1e-5
    assert model.generation_config is defaults


def test_rows_stop_one_by_one(llama: nn.Module, prompts: list[list[int]]) -> None:
    tokenizer = toy_tokenizer()
    sampling = SamplingParams(
        max_new_tokens=15, temperature=2.0, stop_token_ids=(2, 7, 9), stop_strings=("!", "A"), seed=3
    )
    rollout = TransformersGenerator(llama, tokenizer).generate(prompts, 6, sampling)
    assert rollout.finish_reasons == NativeGenerator(llama, tokenizer).generate(prompts, 6, sampling).finish_reasons
    for line, finishes in zip(rollout.completions, rollout.finish_reasons, strict=True):
        for ids, finish in zip(line, finishes, strict=True):
            text = tokenizer.decode(ids)
            assert (finish == "stop") == (ids[-1] in (2, 7, 9) or "!" in text or "A" in text)


def test_the_model_and_the_random_state_come_back_as_they_were(prompts: list[list[int]]) -> None:
    model = tiny_model("llama", attention_dropout=0.5)
    model.train()
    torch.manual_seed(4)
    before = torch.get_rng_state().clone()
    TransformersGenerator(model).generate(prompts, 2, SamplingParams(max_new_tokens=4, seed=1))
    assert torch.equal(before, torch.get_rng_state())
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
def test_mixtures_are_those_of_the_native_engine(weight: float, llama: nn.Module, prompts: list[list[int]]) -> None:
    mixture = Mixture(tiny_model("llama", seed=5), weight)
    sampling = SamplingParams(max_new_tokens=6, stop_token_ids=(2,), seed=4)
    mine = NativeGenerator(llama).generate(prompts, 2, sampling, mixture=mixture)
    theirs = TransformersGenerator(llama).generate(prompts, 2, sampling, mixture=mixture)
    assert theirs.completions == mine.completions


def test_limits_of_positions_hold_for_each_row() -> None:
    model = tiny_model("gpt2", n_positions=12, max_position_embeddings=12, dtype=torch.float32)
    sampling = SamplingParams(max_new_tokens=8, stop_token_ids=(), seed=0)
    rollout = TransformersGenerator(model).generate([[5] * 9, [6, 7]], 1, sampling)
    assert [len(ids) for line in rollout.completions for ids in line] == [3, 8]


def test_bad_input(llama: nn.Module) -> None:
    with pytest.raises(DataError, match="prompt 1"):
        TransformersGenerator(llama).generate([[5], []], 1, GREEDY)
    with pytest.raises(ConfigError, match="max_rows"):
        TransformersGenerator(llama, max_rows=0)
    assert TransformersGenerator(llama).generate([], 1, GREEDY).completions == []


def test_sync_takes_another_model(llama: nn.Module, prompts: list[list[int]], greedy_reference: Callable) -> None:
    engine = TransformersGenerator(llama)
    other = tiny_model("llama", seed=9)
    engine.sync(other)
    assert engine.generate(prompts, 1, GREEDY).completions == [[ids] for ids in greedy_reference(other, prompts, 10)]
    engine.close()


def odd(arch: str, **fields: Any) -> Any:
    sizes = {"vocab_size": 64, "hidden_size": 32, "d_model": 32, "intermediate_size": 32, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "decoder_layers": 2, "pad_token_id": 0}
    sizes |= {"decoder_attention_heads": 4, "decoder_ffn_dim": 32, "max_position_embeddings": 64, "lru_width": 32}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(arch, **sizes | fields)).float().eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and "rg_lru" not in name and "time_" not in name:
            torch.nn.init.normal_(parameter, std=0.15)
    return model


ODD = {
    "bart": ({}, (True, True)),  # positions count the padding
    "recurrent_gemma": ({"num_hidden_layers": 3}, (True, True)),  # states run over it
    "minimax": ({"layer_types": ["linear_attention", "full_attention"], "sliding_window": 8}, (False, False)),
    "lfm2": (
        {"layer_types": ["conv", "conv"], "block_auto_adjust_ff_dim": False},
        (False, False),
    ),  # no cache
    "rwkv": ({"attention_hidden_size": 32}, (False, True)),  # a cache that is wrong for more than one row
}


@pytest.mark.parametrize("arch", ODD)
def test_padding_and_caches_that_change_numbers_are_found_and_avoided(
    arch: str, prompts: list[list[int]], forced_logps: Callable, largest_gap: Callable
) -> None:
    fields, way = ODD[arch]
    generator = TransformersGenerator(odd(arch, **fields))
    sampling = SamplingParams(max_new_tokens=5, stop_token_ids=(), seed=1)
    rollout = generator.generate(prompts[:3], 2, sampling)
    assert largest_gap(rollout.sampler_logps, forced_logps(generator.model, rollout, sampling)) < 1e-3
    assert generator.way == way


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_rows_with_positions_by_length_are_sampled_as_if_alone(
    kind: str, prompts: list[list[int]], largest_gap: Callable
) -> None:
    rope = {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 12}
    rope |= {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 3.0, 4.0, 5.0]} if kind == "longrope" else {}
    model = tiny_model("llama", rope_parameters=rope, max_position_embeddings=12, dtype=torch.float32)
    generator, sampling = TransformersGenerator(model), SamplingParams(max_new_tokens=6, stop_token_ids=(), seed=1)
    together = generator.generate(prompts, 1, sampling)
    for at, prompt in enumerate(prompts):
        given = together.completions[at][0]
        with torch.no_grad():
            first = copy.deepcopy(model)(input_ids=torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
        assert together.sampler_logps[at][0][0] == pytest.approx(float(first[given[0]]), abs=1e-4)
