"""The load-balancing loss equals transformers' and does not depend on the layout."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import PromptTuningConfig, get_peft_model
from tests.support.random_trees import random_examples
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

from strop.errors import ConfigError, SetupError
from strop.model import score
from strop.model.router import has_router, router_coefficient, router_loss
from strop.records import Example
from strop.testing.tiny import tiny_model


def test_equals_transformers(model_of: Any) -> None:
    config = model_of("qwen3_moe").config
    torch.manual_seed(0)
    logits = tuple(torch.randn(9, 4) for _ in range(2))
    mask = torch.tensor([1.0, 1, 1, 0, 1, 1, 0, 1, 1])
    ours = router_loss(logits, mask, config)
    assert torch.allclose(ours, load_balancing_loss_func(logits, 4, 2, mask.reshape(1, 9)))
    even = router_loss((torch.zeros(8, 4).fill_diagonal_(1e-6),), torch.ones(8), config)
    assert even == pytest.approx(2.0, abs=1e-4)  # two experts per token


def test_one_row_equals_the_models_own(model_of: Any) -> None:
    model = model_of("qwen3_moe")
    out = model(input_ids=torch.tensor([[5, 6, 7, 8]]), output_router_logits=True)
    scores = score(model, [Example([5, 6], [[7, 8, 9]])], aux_loss=True)
    assert scores.aux_loss.item() == pytest.approx(out.aux_loss.item(), rel=1e-6)


def test_layouts_agree_with_gradient(model_of: Any, grads_of: Any) -> None:
    model = model_of("qwen3_moe")
    examples = random_examples(2, trees=4, completions=(1, 3))
    losses = [score(model, examples, aux_loss=True, layout=name).aux_loss for name in ("tree", "packed", "padded")]
    grads = [grads_of(model, loss) for loss in losses]
    for loss, grad in zip(losses[1:], grads[1:], strict=True):
        assert torch.allclose(loss, losses[0], rtol=1e-10)
        assert torch.allclose(grad, grads[0], atol=1e-10) and grad.any()


def test_models_without_a_router(model_of: Any) -> None:
    assert has_router(model_of("qwen3_moe").config) and not has_router(model_of("llama").config)
    with pytest.raises(ConfigError, match="no router logits"):
        router_loss((), torch.ones(1), model_of("llama").config)


def test_a_config_that_names_a_weight_for_layers_that_are_not_there() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    size = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    dense = AutoModelForCausalLM.from_config(AutoConfig.for_model("doge", **size, **heads, is_moe=False))
    assert dense.config.router_aux_loss_coef > 0 and router_coefficient(dense, None) == 0.0
    mixture = tiny_model("qwen3_moe")
    assert router_coefficient(mixture, None) == mixture.config.router_aux_loss_coef


def test_a_balance_behind_learned_tokens_is_refused_before_anything_is_trained() -> None:
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    policy = get_peft_model(tiny_model("qwen3_moe"), config)
    with pytest.raises(ConfigError, match="router_aux_loss_coef=0"):
        router_coefficient(policy, None)
    assert router_coefficient(policy, 0.0) == 0.0


def test_experts_chosen_by_later_tokens_are_named() -> None:
    """Doge's mixture splits its router's logits across the tokens of a row; its attention is causal."""
    from transformers import AutoConfig, AutoModelForCausalLM

    size = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_experts": 16, "num_experts_per_tok": 2}
    torch.manual_seed(0)
    mixture = AutoModelForCausalLM.from_config(AutoConfig.for_model("doge", **size, **heads, is_moe=True))
    for weight in mixture.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    with pytest.raises(SetupError, match="experts are chosen so"):
        score(mixture, [Example([5, 6], [[7, 8, 9]])])
