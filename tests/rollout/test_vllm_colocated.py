from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
from torch import nn

from strop.errors import SetupError
from strop.rollout import SamplingParams, make_generator
from strop.rollout.native import NativeGenerator
from strop.testing.tiny import tiny_model

HAS_VLLM = importlib.util.find_spec("vllm") is not None


def test_without_vllm_the_error_says_what_to_install(llama: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(SetupError, match="pip install vllm"):
        make_generator("vllm", model=llama, mode="colocate")


@pytest.mark.skipif(not HAS_VLLM, reason="needs vllm")
def test_colocated_vllm_samples_from_the_policys_weights(tmp_path: Path) -> None:
    import torch

    shape = dict(hidden_size=128, intermediate_size=128, num_attention_heads=2, num_key_value_heads=2)
    start = tiny_model("llama", dtype=torch.float32, seed=1, **shape)
    start.save_pretrained(tmp_path)
    policy = tiny_model("llama", dtype=torch.float32, **shape)
    engine = make_generator(
        "vllm",
        model=policy,
        mode="colocate",
        model_path=str(tmp_path),
        engine={"dtype": "float32", "skip_tokenizer_init": True, "max_model_len": 64, "enforce_eager": True},
    )
    sampling = SamplingParams(max_new_tokens=8, temperature=0, stop_token_ids=(2,))
    prompts = [[5, 6, 7], [8]]
    expected = NativeGenerator(policy).generate(prompts, 2, sampling)
    assert engine.generate(prompts, 2, sampling).completions == expected.completions
    engine.close()
