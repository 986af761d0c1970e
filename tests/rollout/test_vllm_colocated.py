from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from strop.errors import SetupError
from strop.rollout import SamplingParams, make_generator
from strop.rollout.native import NativeGenerator
from strop.testing.tiny import tiny_model

HAS_VLLM = importlib.util.find_spec("vllm") is not None


def test_without_vllm_the_error_says_what_to_install(llama: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(SetupError, match=r"pip install 'strop\[vllm\]'"):
        make_generator("vllm", model=llama, mode="colocate")


@pytest.mark.skipif(not HAS_VLLM, reason="needs vllm")
@pytest.mark.parametrize("lora", [False, True])
def test_colocated_vllm_samples_from_the_policys_weights(lora: bool, tmp_path: Path) -> None:
    shape = dict(hidden_size=128, intermediate_size=128, num_attention_heads=2, num_key_value_heads=2)
    policy: nn.Module = tiny_model("llama", dtype=torch.float32, **shape)
    if lora:
        policy.save_pretrained(tmp_path)
        policy = get_peft_model(policy, LoraConfig(r=8, target_modules=["q_proj", "down_proj"])).eval()
    else:  # vLLM starts from other weights than the policy's
        tiny_model("llama", dtype=torch.float32, seed=1, **shape).save_pretrained(tmp_path)
    engine = make_generator(
        "vllm",
        model=policy,
        mode="colocate",
        model_path=str(tmp_path),
        llm_args={"dtype": "float32", "skip_tokenizer_init": True, "max_model_len": 64, "enforce_eager": True},
    )
    sampling = SamplingParams(max_new_tokens=8, temperature=0, stop_token_ids=(2,))
    prompts = [[5, 6, 7], [8]]
    seen = []
    for _ in range(3):
        expected = NativeGenerator(policy).generate(prompts, 2, sampling)
        engine.sync()
        assert engine.generate(prompts, 2, sampling).completions == expected.completions
        seen.append(expected.completions)
        for name, parameter in policy.named_parameters():
            if parameter.requires_grad and parameter.dim() > 1:
                parameter.data += 0.2 * torch.sin(torch.arange(parameter.numel()) + len(name)).view_as(parameter)
    assert len({str(completions) for completions in seen}) > 1, "the updates should change what is written"
    engine.close()
