from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

from strop.rollout import self_check
from strop.rollout.self_check import why_not_native
from strop.testing.tiny import tiny_model


@pytest.mark.parametrize("arch", ["llama", "gemma2", "gpt_oss", "qwen3_moe", "gpt2", "opt"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_models_that_the_engine_serves_pass(arch: str, dtype: torch.dtype) -> None:
    model = tiny_model(arch, dtype=dtype)
    model.train()
    assert why_not_native(model) is None
    assert model.training


def test_lora_policies_and_autocast_pass() -> None:
    policy = get_peft_model(tiny_model("llama", dtype=torch.float32), LoraConfig(target_modules=["q_proj"]))
    assert why_not_native(policy) is None
    assert why_not_native(policy, autocast=torch.bfloat16) is None


def test_a_forward_that_accelerate_wrapped_in_autocast_passes() -> None:
    model = tiny_model("llama", dtype=torch.float32)
    model._original_forward = model.forward
    model.forward = torch.autocast("cpu", torch.bfloat16)(model.forward)
    assert why_not_native(model) is None


@pytest.mark.parametrize(("arch", "reason"), [("bloom", "other logits"), ("mamba", "linear_attention")])
def test_models_with_another_kind_of_attention_are_refused(arch: str, reason: str) -> None:
    model = tiny_model(arch, dtype=torch.float32)
    before = model.config._attn_implementation
    assert reason in str(why_not_native(model))
    assert model.config._attn_implementation == before


def test_other_reasons() -> None:
    config = T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    assert "encoder-decoder" in str(why_not_native(T5ForConditionalGeneration(config)))
    assert "Linear" in str(why_not_native(nn.Linear(2, 2)))
    longer = tiny_model("llama", rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0})
    assert "dynamic" in str(why_not_native(longer))
    sharded = tiny_model("llama")
    sharded.lm_head.weight.ds_id = 0
    assert "spread over processes" in str(why_not_native(sharded))
    spread = tiny_model("llama")
    spread.hf_device_map = {"model": 0, "lm_head": 1}
    assert "several devices" in str(why_not_native(spread))


def test_an_architecture_that_fails_without_a_word_is_named_by_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama", dtype=torch.float32)
    layer = type(model.model.layers[0].self_attn)
    plain = layer.forward

    def picky(self: nn.Module, *args: object, **kwargs: object) -> object:
        if self.config._attn_implementation not in ("sdpa", "eager"):
            raise NotImplementedError
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(layer, "forward", picky)
    assert str(why_not_native(model)).endswith("failed with NotImplementedError: NotImplementedError")


def test_a_wrong_window_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The prompts of the check are longer than a short window: an engine that ignored it would be refused."""
    from strop.rollout import attention_hook

    original = attention_hook.Shape
    monkeypatch.setattr(attention_hook, "Shape", lambda scale, window, *rest: original(scale, None, *rest))
    assert "other logits" in str(why_not_native(tiny_model("mistral")))


def test_an_exception_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise IndexError("list index out of range")

    monkeypatch.setattr(self_check.Decoder, "prefill", fail)
    assert "IndexError" in str(why_not_native(tiny_model("llama")))
