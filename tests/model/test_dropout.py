"""Dropout off everywhere, and modes restored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftConfig
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from strop.model import apply_peft, base_model, build_batch, score_batch
from strop.model.attention_dense import dense_attention
from strop.model.dropout import disable_dropout, evaluating
from strop.model.forest import always
from strop.model.saving import as_to_save
from strop.model.segments import Segments, Span
from strop.records import Example
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


class DropByValue(nn.Module):
    """Dropout whose draw is made of the values: the same token with the same past is dropped alike in every layout."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return states * ((states.detach() * 1e4).round() % 3 != 0) * 1.5


def test_rows_that_share_tokens_drop_as_rows_alone(row_logps: Any, grads_of: Any) -> None:
    """Of residuals, embeddings and LoRA's input: what a row computes is what it computes alone under the same draw."""
    model = apply_peft(tiny_model("gpt2"), {"lora_dropout": 0.5, "init_lora_weights": False}).train()
    examples = [Example([1, 2, 3], [[4, 5, 6], [4, 6, 7]]), Example([1, 2], [[3, 4, 5, 8], [8, 9]])]
    plain = row_logps(model.eval(), examples)
    dropped = [name for name, module in model.named_modules() if isinstance(module, nn.Dropout)]
    assert any("lora_dropout" in name for name in dropped) and any("resid_dropout" in name for name in dropped)
    for name in dropped:
        model.set_submodule(name, DropByValue())
    batch = build_batch(examples, shares=always)
    assert batch.segments.deep and len(batch.input_ids[0]) == 7
    shared, alone = score_batch(model, batch).logps, row_logps(model, examples)
    assert torch.allclose(shared, alone, rtol=0, atol=1e-10) and not torch.allclose(alone, plain, atol=0.01)
    assert torch.allclose(grads_of(model, shared), grads_of(model, alone), rtol=0, atol=1e-9)


def test_attention_weights_of_a_forest_are_dropped_without_bias() -> None:
    """4,000 heads that are alike but for their draw: on average what nothing is dropped from."""
    segments = Segments([Span(0, 6), Span(6, 3), Span(9, 4), Span(13, 2)], [-1, 0, 0, 1])
    query, key, value = torch.randn(3, 1, 1, 15, 4, generator=torch.Generator().manual_seed(0)).unbind()
    whole = dense_attention(query, key, value, segments, scale=0.5)
    torch.manual_seed(0)
    drawn = dense_attention(query.expand(1, 4000, 15, 4), key, value, segments, scale=0.5, dropout=0.5)
    assert float((drawn.mean(2) - whole[:, :, 0]).abs().max()) < 0.1
    assert float(drawn.std(2)[:, -1].min()) > 0.1


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
