"""Adapters are never merged into the weights they sit on: however often weights are synced, the base stays as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.support.crash import fingerprint
from torch import nn

from strop.rollout import SamplingParams
from strop.rollout.native import NativeGenerator
from strop.rollout.vllm_engine import VllmGenerator
from strop.testing.tiny import tiny_model

TIMES = [10, pytest.param(1000, marks=pytest.mark.slow)]
ONE_TOKEN = SamplingParams(max_new_tokens=2, seed=1, stop_token_ids=())


def adapted() -> Any:
    """A bfloat16 policy with a trained adapter."""
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    return get_peft_model(tiny_model("llama", dtype=torch.bfloat16), config)


def base_of(policy: Any) -> nn.Module:
    """The weights below the adapter, by themselves."""
    holder = nn.Module()
    for index, (name, parameter) in enumerate(policy.named_parameters()):
        if "lora_" not in name:
            holder.register_parameter(f"p{index}", parameter)
    return holder


def move_adapter(policy: Any) -> None:
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_" in name:
                parameter.add_(0.01 * torch.randn_like(parameter))


def test_merging_would_be_noticed() -> None:
    policy = adapted()
    before = fingerprint(base_of(policy))
    policy.merge_adapter()
    policy.unmerge_adapter()
    assert fingerprint(base_of(policy)) != before


@pytest.mark.parametrize("times", TIMES)
def test_syncs_to_a_server_leave_the_base_alone(times: int, stub: Any, tmp_path: Path) -> None:
    policy = adapted()
    before = fingerprint(base_of(policy))
    engine = VllmGenerator(policy, base_url=stub.url, sync_dir=tmp_path)
    for _ in range(times):
        move_adapter(policy)
        engine.sync()
    engine.close()
    assert fingerprint(base_of(policy)) == before


@pytest.mark.parametrize("times", TIMES)
def test_sampling_leaves_the_base_alone(times: int) -> None:
    policy = adapted()
    before = fingerprint(base_of(policy))
    engine = NativeGenerator(policy)
    for _ in range(times):
        move_adapter(policy)
        engine.sync(policy)
        engine.generate([[5, 6], [7]], 2, ONE_TOKEN)
    assert fingerprint(base_of(policy)) == before
