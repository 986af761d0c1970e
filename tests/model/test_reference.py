"""The reference is the initial policy: KL exactly 0 at the start, unmoved by training, for every kind of policy."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from tests.support.random_trees import random_examples
from torch import nn

from strop.errors import ConfigError
from strop.model import AdapterCopy, AdapterOff, FrozenReference, apply_peft, disable_dropout, make_reference, score
from strop.model.beside_adapter import KeptWeights
from strop.model.reference import REFERENCE_ADAPTER, adds_nothing
from strop.testing.tiny import tiny_model

EXAMPLES = random_examples(1, trees=3, completions=(2, 3))


def full() -> nn.Module:
    return tiny_model("llama")


def lora(**options: Any) -> nn.Module:
    targets = options.pop("target_modules", ["q_proj", "v_proj"])
    config = peft.LoraConfig(r=4, target_modules=targets, lora_dropout=0.5, **options)
    return apply_peft(tiny_model("llama", dtype=torch.float32), config)


def pretrained_lora() -> nn.Module:
    policy = lora()
    move(policy)
    return policy


def move(policy: nn.Module) -> None:
    """As an optimizer would: every weight that is trained."""
    generator = torch.Generator().manual_seed(5)
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


def half_precision_lora() -> nn.Module:
    policy = pretrained_lora().to(torch.bfloat16)
    assert next(p for p in policy.parameters() if p.requires_grad).dtype == torch.bfloat16
    return policy


def unfrozen(part: str, make: Any = lora) -> nn.Module:
    """LoRA with weights of the base model trained beside it."""
    policy = make()
    for name, parameter in policy.named_parameters():
        if part in name:
            parameter.requires_grad_(True)
    return policy


def biased(bias: str, trained: bool = False) -> nn.Module:
    """LoRA that trains biases of the base model too."""
    config = peft.LoraConfig(r=4, target_modules=["c_attn"], bias=bias)
    policy = apply_peft(tiny_model("gpt2", dtype=torch.float32), config)
    if trained:
        move(policy)
    return policy


def replicated() -> nn.Module:
    """Two layers that stand for three, each with an adapter of its own, after some training."""
    policy = lora(layer_replication=[[0, 2], [1, 2]])
    move(policy)
    return policy


def adaptive() -> nn.Module:
    config = peft.AdaLoraConfig(init_r=4, target_r=2, total_step=9, target_modules=["q_proj"])
    policy = apply_peft(tiny_model("llama", dtype=torch.float32), config)
    move(policy)
    return policy


KINDS = [
    (full, FrozenReference),
    (lambda: biased("all"), AdapterOff),
    (lambda: biased("lora_only"), AdapterOff),
    (lambda: biased("all", trained=True), AdapterCopy),
    (lambda: unfrozen("norm"), AdapterOff),
    (lambda: unfrozen("embed_tokens"), AdapterOff),
    (lambda: unfrozen("lm_head"), AdapterOff),
    (lambda: unfrozen("q_proj.base_layer"), AdapterOff),
    (lambda: unfrozen("norm", pretrained_lora), AdapterCopy),
    (lambda: lora(trainable_token_indices=[3, 7]), AdapterOff),
    (lora, AdapterOff),
    (lambda: lora(target_modules=["q_proj", "lm_head", "embed_tokens"]), AdapterOff),
    (lambda: lora(modules_to_save=["lm_head"]), AdapterOff),
    (pretrained_lora, AdapterCopy),
    (half_precision_lora, AdapterCopy),
    (lambda: lora(use_dora=True), AdapterCopy),
    (lambda: lora(init_lora_weights="pissa"), AdapterCopy),
    (lambda: lora(init_lora_weights=False), AdapterCopy),
    (replicated, AdapterCopy),
    (adaptive, AdapterCopy),
]


@pytest.mark.parametrize(("make", "kind"), KINDS)
def test_first_kl_is_exactly_zero_and_training_does_not_move_it(make: Any, kind: type) -> None:
    policy = disable_dropout(make()).train()
    trained = {name for name, p in policy.named_parameters() if p.requires_grad}
    untouched = score(policy, EXAMPLES).logps
    reference = make_reference(policy)
    assert isinstance(reference, kind)
    first = score(policy, EXAMPLES).logps
    assert torch.equal(first, untouched)
    with reference.active() as model:
        before = score(model, EXAMPLES).logps
    assert torch.equal(first, before) and first.requires_grad and not before.requires_grad
    assert all(module.training for module in policy.modules())
    assert {name for name, p in policy.named_parameters() if p.requires_grad} == trained

    first.sum().backward()
    assert not [
        name for name, p in policy.named_parameters() if f".{REFERENCE_ADAPTER}." in name and p.grad is not None
    ]
    move(policy)
    with reference.active() as model:
        assert torch.equal(score(model, EXAMPLES).logps, before)
    assert not torch.allclose(score(policy, EXAMPLES).logps, before, atol=1e-3)


def test_dropout_of_the_policy_does_not_reach_the_reference() -> None:
    for policy in (tiny_model("llama", attention_dropout=0.5), lora(), pretrained_lora()):
        expected = score(policy, EXAMPLES).logps
        policy.train()
        with make_reference(policy).active() as model:
            assert torch.equal(score(model, EXAMPLES).logps, expected)
        assert all(module.training for module in policy.modules())


def test_a_given_model_is_the_reference() -> None:
    policy, given = tiny_model("llama"), tiny_model("llama", seed=1)
    reference = make_reference(policy, given)
    with reference.active() as model:
        assert model is given
    assert not any(p.requires_grad for p in given.parameters()) and not given.training
    with make_reference(policy, policy).active() as model:
        assert model is not policy  # training would move it


def test_a_copy_holds_no_gradients_and_is_not_the_policy() -> None:
    policy = full()
    score(policy, EXAMPLES).logps.sum().backward()
    with make_reference(policy).active() as model:
        assert all(p.grad is None for p in model.parameters())
        assert not {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in policy.parameters()}


def test_a_copy_follows_the_policy() -> None:
    policy = full()
    reference = make_reference(policy)
    old = {name: p.clone() for name, p in policy.named_parameters()}
    move(policy)
    reference.sync(0.6)
    with reference.active() as model:
        for name, parameter in model.named_parameters():
            expected = 0.6 * dict(policy.named_parameters())[name] + 0.4 * old[name]
            assert torch.allclose(parameter, expected, atol=1e-14)
    reference.sync(1.0)
    with reference.active() as model:
        assert torch.equal(score(model, EXAMPLES).logps, score(policy, EXAMPLES).logps)
    with pytest.raises(ConfigError, match="between 0 and 1"):
        reference.sync(1.5)
    with pytest.raises(ConfigError, match="differ in name or shape"):
        make_reference(policy, tiny_model("llama", hidden_size=16)).sync(0.5)


def test_an_adapters_copy_follows_in_whole_steps() -> None:
    policy = disable_dropout(lora())
    reference = make_reference(policy, syncs=True)
    assert isinstance(reference, AdapterCopy) and reference.adapter_names == ["default"]
    move(policy)
    reference.sync(1.0)
    synced = score(policy, EXAMPLES).logps
    with reference.active() as model:
        assert torch.equal(score(model, EXAMPLES).logps, synced)
    move(policy)
    with reference.active() as model:
        assert torch.equal(score(model, EXAMPLES).logps, synced)
    assert policy.active_adapter == "default"
    beside = unfrozen("norm")
    following = make_reference(beside, syncs=True)
    move(beside)
    following.sync(1.0)
    with following.active() as model:
        assert torch.equal(score(model, EXAMPLES).logps, score(disable_dropout(beside), EXAMPLES).logps)
    with pytest.raises(ConfigError, match="mixture of products"):
        reference.sync(0.5)
    with pytest.raises(ConfigError, match="syncs=True"):
        make_reference(lora()).sync(1.0)


def test_only_the_trained_adapter_is_saved(tmp_path: Any) -> None:
    policy = pretrained_lora()
    reference = make_reference(policy)
    policy.save_pretrained(tmp_path, selected_adapters=reference.adapter_names)
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == []
    assert (tmp_path / "adapter_config.json").exists()


def test_what_adds_nothing() -> None:
    assert adds_nothing(lora())
    assert not adds_nothing(pretrained_lora())
    assert not adds_nothing(apply_peft(tiny_model("llama"), peft.IA3Config(task_type="CAUSAL_LM")))


def test_an_adapter_alone_keeps_nothing_beside_it() -> None:
    options = {"modules_to_save": ["lm_head"], "trainable_token_indices": [3], "use_dora": True}
    assert not any(KeptWeights(lora(**{name: value})) for name, value in options.items())
    assert KeptWeights(biased("all")) and KeptWeights(unfrozen("norm"))
