from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from strop.errors import SetupError
from strop.rollout.attention_hook import ATTENTION_NAME
from strop.rollout.rollout_mode import rollout_attention, sampling_mode, transformers_model
from strop.testing.tiny import tiny_model


def test_the_transformers_model_is_found_inside_adapters() -> None:
    model = tiny_model("llama")
    assert transformers_model(model) is model
    assert transformers_model(get_peft_model(model, LoraConfig(target_modules=["q_proj"]))) is model
    with pytest.raises(SetupError, match="Linear"):
        transformers_model(nn.Linear(2, 2))


def test_every_modules_flag_is_restored() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout()))
    model.train()
    model[1].eval()
    with pytest.raises(KeyError), sampling_mode([model]):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
        raise KeyError
    assert [module.training for module in model.modules()] == [True, True, False, False]
    assert torch.is_grad_enabled()


def test_attention_is_restored() -> None:
    first, second = tiny_model("llama"), tiny_model("gemma2")
    second.set_attn_implementation("eager")
    before = first.config._attn_implementation, "eager"
    with pytest.raises(KeyError), rollout_attention([first, second, first]):
        assert first.config._attn_implementation == second.config._attn_implementation == ATTENTION_NAME
        raise KeyError
    assert (first.config._attn_implementation, second.config._attn_implementation) == before


def test_a_forward_pass_outside_a_rollout_is_refused() -> None:
    model = tiny_model("llama")
    with rollout_attention([model]), pytest.raises(SetupError, match="set_attn_implementation"):
        model(input_ids=torch.tensor([[5]]))
