"""Dropout off everywhere, and modes restored."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftConfig
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from strop.model import apply_peft, base_model
from strop.model.dropout import disable_dropout, evaluating
from strop.model.saving import as_to_save
from strop.testing.tiny import tiny_model

SETTINGS = {
    "llama": {"attention_dropout": 0.5},
    "gpt2": {"attn_pdrop": 0.5, "resid_pdrop": 0.5, "embd_pdrop": 0.5},
    "opt": {"dropout": 0.5, "attention_dropout": 0.5, "layerdrop": 0.5},
    "bloom": {"hidden_dropout": 0.5, "attention_dropout": 0.5},
    "gemma2": {"attention_dropout": 0.5},
}


@pytest.mark.parametrize("arch", sorted(SETTINGS))
def test_training_is_deterministic_without_dropout(arch: str) -> None:
    model = tiny_model(arch, **SETTINGS[arch])
    ids = torch.arange(3, 13)[None]
    exact = model(input_ids=ids).logits
    model.train()
    assert not torch.allclose(model(input_ids=ids).logits, exact, atol=1e-3)
    assert disable_dropout(model) is model
    for _ in range(3):
        assert torch.equal(model(input_ids=ids).logits, exact)


def test_modes_are_restored_one_by_one() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout(), nn.Dropout()))
    model[1][0].eval()
    before = [module.training for module in model.modules()]
    with pytest.raises(ZeroDivisionError), evaluating(model):
        assert not any(module.training for module in model.modules())
        raise ZeroDivisionError
    assert [module.training for module in model.modules()] == before


def test_a_routers_jitter_is_not_dropout() -> None:
    model = tiny_model("llama", router_jitter_noise=0.01, attention_dropout=0.5)
    model.model.jitter_noise = 0.01
    disable_dropout(model)
    assert (model.config.router_jitter_noise, model.model.jitter_noise) == (0.01, 0.01)
    assert model.config.attention_dropout == 0.0


def test_experts_are_not_drawn_without_dropout() -> None:
    """PhiMoE draws its experts in training mode: its policy would be another model than its reference."""
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 32}
    sizes |= {"vocab_size": 64, "num_hidden_layers": 2, "num_local_experts": 8, "router_jitter_noise": 0.5}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("phimoe", **sizes)).eval()
    ids = torch.arange(3, 43)[None]
    exact = model(input_ids=ids).logits
    assert not torch.allclose(model.train()(input_ids=ids).logits, exact, atol=1e-3)
    assert torch.equal(disable_dropout(model).train()(input_ids=ids).logits, exact)
    assert model.training and model.config.router_jitter_noise == 0.5


def test_what_was_switched_off_is_saved_as_it_was(tmp_path: Path) -> None:
    model = disable_dropout(apply_peft(tiny_model("opt", **SETTINGS["opt"]), {"lora_dropout": 0.5}))
    disable_dropout(model)  # a reference that is made of it is asked to again
    with as_to_save(model):
        base_model(model).save_pretrained(tmp_path)
        model.save_pretrained(tmp_path / "adapter")
    saved = AutoConfig.from_pretrained(tmp_path)
    assert (saved.dropout, saved.attention_dropout, saved.layerdrop) == (0.5, 0.5, 0.5)
    assert PeftConfig.from_pretrained(tmp_path / "adapter").lora_dropout == 0.5
    config = base_model(model).config
    assert (config.dropout, config.attention_dropout, config.layerdrop) == (0.0, 0.0, 0.0)


def test_only_dropout_is_switched_off() -> None:
    model = tiny_model("qwen3_moe", attention_dropout=0.5, router_aux_loss_coef=0.25)
    before = model.config.to_dict()
    changed = {name for name, value in disable_dropout(model).config.to_dict().items() if value != before[name]}
    assert changed == {"attention_dropout"}


def test_weights_that_evaluation_divides_are_saved_whole(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "attention_hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 4}
    config = AutoConfig.for_model("rwkv", **sizes, vocab_size=64, rescale_every=2)
    model = AutoModelForCausalLM.from_config(config).float().train()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    model.eval()(input_ids=torch.arange(4)[None])
    assert not all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    with as_to_save(model):
        model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(weight, again[name]) for name, weight in before.items())
