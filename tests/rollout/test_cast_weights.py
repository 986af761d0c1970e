"""Weights cast once per rollout: the numbers of autocast, to the last bit, and a policy that nobody touched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.support.card_in_memory import emulated_card
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from strop.model import score
from strop.records import Example, Rollout
from strop.rollout import SamplingParams, cast_weights, limits, native
from strop.rollout.cast_weights import can_be_cast
from strop.rollout.native import NativeGenerator
from strop.rollout.rollout_mode import rollout_attention
from strop.testing.tiny import tiny_model

PARAMS = SamplingParams(max_new_tokens=7, temperature=0.9, stop_token_ids=(2,), seed=3)
CPU = torch.device("cpu")


def lora(model: Any, **options: Any) -> Any:
    torch.manual_seed(1)
    settings = {"r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"], **options}
    policy = get_peft_model(model, LoraConfig(**settings))
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.3)
    return policy.eval()


def policies() -> dict[str, Callable[[], Any]]:
    wide: dict[str, Any] = {"dtype": torch.float32}
    return {
        "llama": lambda: tiny_model("llama", **wide),
        "tied": lambda: tiny_model("qwen2", **wide),
        "gpt2": lambda: tiny_model("gpt2", **wide),
        "gemma2": lambda: tiny_model("gemma2", **wide),
        "experts": lambda: tiny_model("qwen3_moe", **wide),
        "lora": lambda: lora(tiny_model("llama", **wide)),
        "dora": lambda: lora(tiny_model("llama", **wide), use_dora=True),
    }


def sampled(model: Any, dtype: torch.dtype, once: bool, monkeypatch: pytest.MonkeyPatch, device: Any) -> Rollout:
    with monkeypatch.context() as patch:
        if not once:
            patch.setattr("strop.rollout.native.can_be_cast", lambda *_: False)
        return NativeGenerator(model, autocast=dtype, cuda_graphs=False).generate([[5, 6, 7], [8]], 3, PARAMS)


@pytest.mark.parametrize("name", list(policies()))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_numbers_are_autocasts(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    model = policies()[name]()
    always, once = (sampled(model, dtype, once, monkeypatch, CPU) for once in (False, True))
    assert once.completions == always.completions and once.sampler_logps == always.sampler_logps


@pytest.mark.parametrize("name", ["llama", "gemma2", "lora"])
def test_the_numbers_are_those_of_autocast_on_a_card(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lists of operations are others than the CPU's."""
    with emulated_card() as card:
        model = card.move(policies()[name]())
        always, once = (sampled(model, torch.bfloat16, once, monkeypatch, card.device) for once in (False, True))
    assert once.completions == always.completions and once.sampler_logps == always.sampler_logps


def test_a_weight_that_another_layer_adds_up_is_left_to_autocast() -> None:
    def castable(model: Any) -> bool:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), rollout_attention([model]):
            return can_be_cast(model, [5, 6, 7], CPU, torch.bfloat16)

    assert castable(policies()["lora"]()) and not castable(policies()["dora"]())


def test_nothing_is_cast_at_a_step() -> None:
    """Frozen weights are cast once and not at every step."""

    class Casts(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if func is torch.ops.aten._to_copy.default and kwargs.get("dtype") == torch.bfloat16:
                Casts.numbers += args[0].numel()
            return func(*args, **kwargs)

    model = tiny_model("llama", dtype=torch.float32).requires_grad_(False)
    engine = NativeGenerator(model, autocast=torch.bfloat16)
    engine.generate([[5]], 1, SamplingParams(max_new_tokens=2, stop_token_ids=(), seed=1))
    found = []
    for tokens in (2, 12):
        Casts.numbers = 0
        with Casts():
            engine.generate([[5]], 1, SamplingParams(max_new_tokens=tokens, stop_token_ids=(), seed=1))
        found.append(Casts.numbers)
    smallest = model.model.layers[0].self_attn.k_proj.weight.numel()
    assert found[1] - found[0] < 10 * 3 * smallest  # activations of ten steps, and no weight


def test_autocast_holds_no_copies_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """It remembers the casts of trained weights to the end of its block: those of the question whether they agree."""
    held, finish = [], native._Run.finish
    with emulated_card() as card:

        def watched(run: Any) -> None:
            held.append(len(card.casts))
            finish(run)
            held.append(len(card.casts))

        monkeypatch.setattr(native._Run, "finish", watched)
        model = card.move(tiny_model("llama", dtype=torch.float32, num_hidden_layers=1))
        NativeGenerator(model, autocast=torch.bfloat16).generate([[5]], 1, PARAMS)
    assert held == [0, 0]


def test_a_policy_is_as_it_was_and_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("qwen2", dtype=torch.float32)  # tied
    weights = dict(model.named_parameters())
    before = {name: weight.clone() for name, weight in weights.items()}
    engine = NativeGenerator(model, autocast=torch.bfloat16)
    first = engine.generate([[5, 6]], 2, PARAMS)
    now = dict(model.named_parameters())
    assert all(now[name] is weight and torch.equal(weight, before[name]) for name, weight in weights.items())
    assert not any("weight" in vars(module) or "bias" in vars(module) for module in model.modules())
    with torch.no_grad():
        for weight in weights.values():
            weight.mul_(1.3).add_(0.05)
    assert engine.generate([[5, 6]], 2, PARAMS).completions != first.completions
    assert engine.generate([[5, 6]], 2, PARAMS) == sampled_anew(model)
    monkeypatch.setattr("strop.rollout.native._Run.finish", lambda _: (_ for _ in ()).throw(RuntimeError("no memory")))
    with pytest.raises(RuntimeError, match="no memory"):
        engine.generate([[5, 6]], 2, PARAMS)
    assert not any("weight" in vars(module) for module in model.modules())


def sampled_anew(model: nn.Module) -> Rollout:
    return NativeGenerator(model, autocast=torch.bfloat16).generate([[5, 6]], 2, PARAMS)


def test_tied_weights_have_one_copy_and_embeddings_none(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("qwen2", dtype=torch.float32)
    linear = {id(m.weight): m.weight for m in model.modules() if isinstance(m, nn.Linear)}
    biases = sum(m.bias.numel() for m in model.modules() if isinstance(m, nn.Linear) and m.bias is not None)
    with cast_weights.cast_weights([model, model], torch.bfloat16) as size:
        assert size == 2 * (sum(weight.numel() for weight in linear.values()) + biases)
        assert model.lm_head.weight.dtype == torch.bfloat16
        assert model.model.embed_tokens.weight.dtype == model.model.norm.weight.dtype == torch.float32
    monkeypatch.setattr(limits, "free_bytes", lambda _: size)
    with cast_weights.cast_weights([model], torch.bfloat16) as none:
        assert none == 0 and model.lm_head.weight.dtype == torch.float32


@pytest.mark.parametrize("name", ["llama", "lora"])
def test_what_the_sampler_says_is_what_the_trainer_says_under_autocast(name: str) -> None:
    """Rounding is all that is between them: they multiply matrices of other shapes."""
    policy = policies()[name]()
    rollout = NativeGenerator(policy, autocast=torch.bfloat16).generate([[5, 6, 7], [8]], 3, PARAMS)
    examples = [Example(p, c) for p, c in zip(rollout.prompts, rollout.completions, strict=True)]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logps = score(policy, examples, temperature=PARAMS.temperature).logps
    assert logps is not None
    said = torch.tensor([x for line in rollout.sampler_logps for row in line for x in row])
    assert float((logps - said).abs().mean()) < 0.05
