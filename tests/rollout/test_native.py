"""What the native engine samples: the model's own distribution, from a model that comes back as it was."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from strop.errors import ConfigError
from strop.model import score
from strop.records import Example
from strop.rollout import Mixture, SamplingParams, warp_logps
from strop.rollout.decoder import Decoder
from strop.rollout.native import NativeGenerator
from strop.testing.tiny import tiny_model
from strop.testing.tokenizers import toy_tokenizer

NATIVE = (
    "llama",
    "qwen2",
    "qwen3",
    "mistral",
    "gemma2",
    "gemma3",
    "qwen3_moe",
    "cohere",
    "granite",
    "gpt_oss",
    "gpt2",
    "opt",
)
GREEDY = SamplingParams(max_new_tokens=10, temperature=0, stop_token_ids=(2,))
SETTINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.7},
    {"top_k": 6},
    {"top_p": 0.8},
    {"min_p": 0.1},
    {"repetition_penalty": 1.3},
    {"temperature": 1.3, "top_k": 20, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.1},
]


def lora(model: nn.Module, dropout: float = 0.0) -> nn.Module:
    """A LoRA policy whose adapter is not at its neutral start."""
    torch.manual_seed(1)
    policy = get_peft_model(
        model, LoraConfig(r=4, lora_dropout=dropout, target_modules=["q_proj", "v_proj", "down_proj"])
    ).double()
    for name, parameter in policy.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.3)
    return policy.eval()


@pytest.mark.parametrize("arch", NATIVE)
def test_greedy_equals_generate(arch: str, prompts: list[list[int]], greedy_reference: Callable) -> None:
    model = tiny_model(arch)
    expected = greedy_reference(model, prompts, 10)
    assert len({tuple(ids) for ids in expected}) == len(prompts), "the prompts should lead to different completions"
    for share, slots in ((True, 5), (False, None)):
        engine = NativeGenerator(model, share_prompts=share, max_slots=slots)
        rollout = engine.generate(prompts, 3, GREEDY)
        assert rollout.completions == [[ids] * 3 for ids in expected], (share, slots)
        assert all(logp == 0 for line in rollout.sampler_logps for row in line for logp in row)


def test_greedy_equals_generate_with_lora(prompts: list[list[int]], greedy_reference: Callable) -> None:
    base = tiny_model("llama")
    without = greedy_reference(base, prompts, 10)
    policy = lora(base)
    expected = greedy_reference(policy, prompts, 10)
    assert expected != without
    rollout = NativeGenerator(policy).generate(prompts, 3, GREEDY)
    assert rollout.completions == [[ids] * 3 for ids in expected]


@pytest.mark.parametrize("arch", ["llama", "gemma2", "gpt_oss", "mistral"])
@pytest.mark.parametrize("share", [True, False])
def test_reported_logps_are_those_of_a_full_forward_pass(
    arch: str, share: bool, prompts: list[list[int]], forced_logps: Callable, largest_gap: Callable
) -> None:
    model = tiny_model(arch)
    engine = NativeGenerator(model, share_prompts=share, max_slots=5)
    sampling = SamplingParams(max_new_tokens=20, stop_token_ids=(2,), seed=3)
    rollout = engine.generate(prompts, 3, sampling)
    assert largest_gap(rollout.sampler_logps, forced_logps(model, rollout, sampling)) < 1e-6


@pytest.mark.parametrize("settings", SETTINGS)
def test_reported_logps_are_under_the_distribution_sampled_from(
    settings: dict, llama: nn.Module, prompts: list[list[int]], forced_logps: Callable, largest_gap: Callable
) -> None:
    sampling = SamplingParams(max_new_tokens=12, stop_token_ids=(2,), seed=11, **settings)
    rollout = NativeGenerator(llama, max_slots=5).generate(prompts, 3, sampling)
    assert sum(len(ids) for line in rollout.completions for ids in line) > 50
    assert largest_gap(rollout.sampler_logps, forced_logps(llama, rollout, sampling)) < 1e-6


@pytest.mark.parametrize("arch", ["llama", "gemma2", "gpt2"])
def test_the_trainers_scores_are_the_samplers(arch: str, prompts: list[list[int]]) -> None:
    """Equal weights and equal distribution: the importance ratio is 1."""
    for policy in [tiny_model(arch)] + ([lora(tiny_model(arch))] if arch == "llama" else []):
        sampling = SamplingParams(max_new_tokens=8, temperature=0.7, stop_token_ids=(2,), seed=2)
        for _ in range(2):  # the second rollout runs on a model that has been taught to score
            rollout = NativeGenerator(policy).generate(prompts, 3, sampling)
            examples = [Example(p, c) for p, c in zip(rollout.prompts, rollout.completions, strict=True)]
            scores = score(policy, examples, temperature=0.7)
            flat = [logp for line in rollout.sampler_logps for row in line for logp in row]
            assert scores.logps is not None
            ratio = (scores.logps.detach() - torch.tensor(flat, dtype=torch.float64)).exp()
            torch.testing.assert_close(ratio, torch.ones_like(ratio), atol=1e-6, rtol=0)


def test_first_and_second_tokens_have_the_models_frequencies(llama: nn.Module) -> None:
    sampling = SamplingParams(max_new_tokens=2, stop_token_ids=(), seed=0, top_k=4)
    rollout = NativeGenerator(llama, max_slots=2000).generate([[5, 6, 7]], 4000, sampling)
    pairs = torch.tensor(rollout.completions[0])  # (4000, 2)
    with torch.no_grad():
        first = warp_logps(llama(input_ids=torch.tensor([[5, 6, 7]])).logits[:, -1], sampling)[0]
    chi_square = cells = 0.0
    for a in first.isfinite().nonzero()[:, 0].tolist():
        with torch.no_grad():
            second = warp_logps(llama(input_ids=torch.tensor([[5, 6, 7, a]])).logits[:, -1], sampling)[0]
        for b in second.isfinite().nonzero()[:, 0].tolist():
            wanted = 4000 * float((first[a] + second[b]).exp())
            if wanted < 5:
                continue
            count = int(((pairs[:, 0] == a) & (pairs[:, 1] == b)).sum())
            chi_square += (count - wanted) ** 2 / wanted
            cells += 1
    assert cells >= 4
    assert chi_square < 39.3  # 99.9 % quantile with 16 degrees of freedom, the most that 4 x 4 kept pairs can have


def test_a_completion_does_not_depend_on_what_else_is_in_the_batch(llama: nn.Module, prompts: list[list[int]]) -> None:
    sampling = SamplingParams(max_new_tokens=12, stop_token_ids=(2, 3, 4, 5), seed=21)
    whole = NativeGenerator(llama).generate(prompts, 4, sampling)
    for slots in (1, 3, 7):
        for share in (True, False):
            other = NativeGenerator(llama, max_slots=slots, share_prompts=share).generate(prompts, 4, sampling)
            assert other.completions == whole.completions, (slots, share)
            assert other.finish_reasons == whole.finish_reasons
    fewer = NativeGenerator(llama).generate(prompts[:2], 2, sampling)
    assert fewer.completions == [line[:2] for line in whole.completions[:2]]


def test_seeds(llama: nn.Module, prompts: list[list[int]]) -> None:
    engine = NativeGenerator(llama)

    def run(seed: int | None) -> list:
        return engine.generate(prompts, 2, SamplingParams(max_new_tokens=10, stop_token_ids=(), seed=seed)).completions

    assert run(1) == run(1)
    assert run(1) != run(2)
    assert run(None) != run(None)
    one = run(1)
    assert one[0][0] != one[0][1], "two samples of a prompt should differ"


def test_equal_prompts_have_samples_of_their_own(llama: nn.Module) -> None:
    sampling = SamplingParams(max_new_tokens=10, stop_token_ids=(), seed=1)
    rollout = NativeGenerator(llama).generate([[5, 6], [5, 6]], 2, sampling)
    assert len({tuple(ids) for line in rollout.completions for ids in line}) == 4


def test_the_callers_random_states_are_untouched(llama: nn.Module, prompts: list[list[int]]) -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    before = torch.get_rng_state().clone(), np.random.get_state()[1].copy(), random.getstate()
    NativeGenerator(llama).generate(prompts, 2, SamplingParams(max_new_tokens=5, seed=1))
    NativeGenerator(llama).generate(prompts, 2, SamplingParams(max_new_tokens=5))
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()
    assert before[2] == random.getstate()


def test_no_token_becomes_text_or_text_a_token(llama: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = toy_tokenizer()

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("ids were decoded or text was encoded")

    for name in ("encode", "decode", "batch_decode", "__call__", "convert_ids_to_tokens", "_decode"):
        monkeypatch.setattr(type(tokenizer), name, refuse)
    rollout = NativeGenerator(llama, tokenizer).generate([[5, 6]], 2, SamplingParams(max_new_tokens=5, seed=0))
    assert len(rollout.completions[0]) == 2


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_comes_back_as_it_was(fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama", dtype=torch.float32)
    model.train()
    model.model.layers[0].mlp.eval()  # a part that was frozen on purpose
    flags = {name: module.training for name, module in model.named_modules()}
    attention = model.config._attn_implementation
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    if fails:
        monkeypatch.setattr(Decoder, "step", lambda *_: (_ for _ in ()).throw(RuntimeError("no memory")))
        with pytest.raises(RuntimeError, match="no memory"):
            NativeGenerator(model).generate([[5, 6]], 2, SamplingParams(max_new_tokens=20, seed=1))
    else:
        NativeGenerator(model).generate([[5, 6]], 2, SamplingParams(max_new_tokens=20, seed=1))
    assert flags == {name: module.training for name, module in model.named_modules()}
    assert model.config._attn_implementation == attention
    assert torch.is_grad_enabled()
    assert not any("forward" in vars(module) for module in model.modules() if isinstance(module, nn.Linear))
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    loss = model(input_ids=torch.tensor([[5, 6, 7]]), labels=torch.tensor([[5, 6, 7]])).loss
    loss.backward()
    assert model.lm_head.weight.grad is not None


def test_checkpointing_of_activations_does_not_disturb(prompts: list[list[int]]) -> None:
    model = tiny_model("llama")
    expected = NativeGenerator(model).generate(prompts, 1, GREEDY).completions
    model.gradient_checkpointing_enable()
    model.train()
    assert NativeGenerator(model).generate(prompts, 1, GREEDY).completions == expected
    assert model.is_gradient_checkpointing


def test_dropout_is_off_while_sampling(prompts: list[list[int]], forced_logps: Callable, largest_gap: Callable) -> None:
    policy = lora(tiny_model("llama", attention_dropout=0.5), dropout=0.5)
    policy.train()
    sampling = SamplingParams(max_new_tokens=8, seed=1)
    rollout = NativeGenerator(policy).generate(prompts, 2, sampling)
    assert policy.training
    policy.eval()
    assert largest_gap(rollout.sampler_logps, forced_logps(policy, rollout, sampling)) < 1e-6


def test_new_weights_are_used_without_a_sync(prompts: list[list[int]], greedy_reference: Callable) -> None:
    model = tiny_model("llama", dtype=torch.float32)  # float32: the packed copies must follow too
    engine = NativeGenerator(model)
    sampling = SamplingParams(max_new_tokens=20, temperature=0, stop_token_ids=(2,))
    before = engine.generate(prompts, 1, sampling).completions
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.data.mul_(1.3).add_(0.05)
    after = engine.generate(prompts, 1, sampling).completions
    assert after != before
    assert after == [[ids] for ids in greedy_reference(model, prompts, 20)]


def test_sync_takes_another_model(llama: nn.Module, prompts: list[list[int]], greedy_reference: Callable) -> None:
    engine = NativeGenerator(llama)
    other = tiny_model("llama", seed=9)
    engine.sync()
    assert engine.model is llama
    engine.sync(other)
    assert engine.generate(prompts, 1, GREEDY).completions == [[ids] for ids in greedy_reference(other, prompts, 10)]
    engine.close()


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_a_mixture_is_the_softmax_of_mixed_logits(weight: float, llama: nn.Module, prompts: list[list[int]]) -> None:
    reference = tiny_model("llama", seed=5)
    sampling = SamplingParams(max_new_tokens=8, temperature=0.9, top_k=30, stop_token_ids=(2,), seed=4)
    rollout = NativeGenerator(llama, max_slots=3).generate(prompts, 3, sampling, mixture=Mixture(reference, weight))
    for prompt, line, logps in zip(prompts, rollout.completions, rollout.sampler_logps, strict=True):
        for ids, row in zip(line, logps, strict=True):
            sequence = torch.tensor([prompt + ids])
            with torch.no_grad():
                policy, mu = llama(input_ids=sequence).logits[0], reference(input_ids=sequence).logits[0]
            mixed = ((1 - weight) * policy.log_softmax(-1) + weight * mu.log_softmax(-1))[len(prompt) - 1 : -1]
            expected = warp_logps(mixed, sampling).gather(-1, torch.tensor(ids)[:, None])[:, 0]
            torch.testing.assert_close(torch.tensor(row, dtype=torch.float64), expected, atol=1e-6, rtol=0)


def test_a_mixture_with_the_policy_without_its_adapter(prompts: list[list[int]], greedy_reference: Callable) -> None:
    base = tiny_model("llama")
    expected = greedy_reference(base, prompts, 10)
    policy = lora(base)
    mixture = Mixture(policy, 1.0, policy.disable_adapter)
    assert NativeGenerator(policy).generate(prompts, 1, GREEDY, mixture=mixture).completions == [[i] for i in expected]
    same = NativeGenerator(policy).generate(prompts, 1, GREEDY, mixture=Mixture(policy, 0.0, policy.disable_adapter))
    assert same.completions == [[ids] for ids in greedy_reference(policy, prompts, 10)]
    half = Mixture(policy, 0.5, policy.disable_adapter)
    assert NativeGenerator(policy).generate(prompts, 1, GREEDY, mixture=half).completions not in (
        same.completions,
        [[ids] for ids in expected],
    )


def test_a_mixture_needs_one_vocabulary(llama: nn.Module) -> None:
    other = tiny_model("llama", vocab_size=80)
    with pytest.raises(ConfigError, match=r"64 ids.*80"):
        NativeGenerator(llama).generate([[5]], 1, GREEDY, mixture=Mixture(other, 0.5))


def test_half_precision_policies(prompts: list[list[int]]) -> None:
    model = tiny_model("llama", dtype=torch.bfloat16)
    sampling = SamplingParams(max_new_tokens=6, seed=1)
    rollout = NativeGenerator(model, share_prompts=True).generate(prompts, 3, sampling)
    assert all(np.isfinite(row).all() for line in rollout.sampler_logps for row in line)


def test_autocast_is_entered(prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    original = Decoder.forward

    def watched(self: Decoder, *args: Any) -> torch.Tensor:
        seen.append(torch.is_autocast_enabled("cpu"))
        return original(self, *args)

    monkeypatch.setattr(Decoder, "forward", watched)
    model = tiny_model("llama", dtype=torch.float32)
    NativeGenerator(model, autocast=torch.bfloat16).generate(prompts, 2, SamplingParams(max_new_tokens=4, seed=1))
    assert seen and all(seen)
