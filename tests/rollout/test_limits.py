from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from strop.rollout import limits
from strop.testing.tiny import tiny_model


def test_vocabulary_is_that_of_the_embedding() -> None:
    model = tiny_model("llama", vocab_size=50)
    model.resize_token_embeddings(70)
    assert limits.vocab_size(model) == 70


def test_a_vocabulary_whose_weights_are_elsewhere() -> None:
    """ZeRO-3 leaves an empty tensor in place of a weight, and its shape beside it."""
    model = tiny_model("llama")
    weight = model.get_input_embeddings().weight
    weight.ds_shape = weight.shape  # type: ignore[attr-defined]
    weight.data = torch.empty(0)
    assert limits.vocab_size(model) == 64


@pytest.mark.parametrize(("arch", "limit"), [("gpt2", 40), ("opt", 40), ("llama", None), ("mistral", None)])
def test_only_position_tables_end(arch: str, limit: int | None) -> None:
    model = (
        tiny_model(arch, n_positions=40, max_position_embeddings=40)
        if arch == "gpt2"
        else tiny_model(arch, max_position_embeddings=40)
    )
    assert limits.position_limit(model) == limit
    if limit is not None:
        model(input_ids=torch.full((1, limit), 5))


def test_bytes_of_a_token() -> None:
    model = tiny_model("llama", dtype=torch.float32)
    assert limits.key_bytes(model) == 2 * 2 * 2 * 8 * 4  # keys and values, layers, heads, head size, bytes


def test_bytes_of_a_token_where_heads_differ_between_layers() -> None:
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 64}
    sizes |= {"intermediate_size": 32, "num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}
    config = AutoConfig.for_model("gemma4_unified_text", **sizes, per_layer_config={1: {"head_dim": 16}})
    assert limits.key_bytes(AutoModelForCausalLM.from_config(config)) == 2 * 2 * (8 + 16) * 4


def test_slots_follow_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama", dtype=torch.float32)
    cpu = torch.device("cpu")
    assert limits.default_slots(model, cpu, 10) == 64
    token = limits.key_bytes(model)
    monkeypatch.setattr(limits, "available_memory_bytes", lambda: token * 10 * 4 * 7)  # a quarter is used
    assert limits.default_slots(model, cpu, 10) == 7
    monkeypatch.setattr(limits, "available_memory_bytes", lambda: 0)
    assert limits.default_slots(model, cpu, 10) == 1


def test_weights_spread_over_processes_are_noticed() -> None:
    model = nn.Linear(2, 2)
    assert not limits.is_sharded(model)
    model.weight.ds_id = 0  # what DeepSpeed ZeRO-3 leaves on a parameter
    assert limits.is_sharded(model)
    wrapper = type("FullyShardedDataParallel", (nn.Linear,), {})(2, 2)
    assert limits.is_sharded(wrapper)
