"""layout="auto" is what the model was seen to do, and looking leaves no trace."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, T5Config, T5ForConditionalGeneration

from strop.errors import ConfigError, SetupError
from strop.model import layout_of, score
from strop.records import Want
from strop.testing.tiny import random_examples, tiny_model


@pytest.mark.parametrize(
    ("arch", "reason"),
    [("bloom", "0 of its 2 layers use transformers' attention interface"), ("mamba", "linear_attention")],
)
def test_models_that_cannot_share_say_so(arch: str, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="strop.model.select"):
        choice = layout_of(tiny_model(arch))
    assert choice.name == "padded" and reason in choice.reason
    assert "padded layout" in caplog.text and reason in caplog.text


def test_models_that_share_say_so_once(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model("llama")
    with caplog.at_level(logging.INFO, logger="strop.model.select"):
        for _ in range(2):
            score(model, random_examples(1))
            assert layout_of(model).name == "tree"
    assert caplog.text.count("is scored in the tree layout") == 1


def test_the_check_leaves_random_state_modes_and_gradients_alone() -> None:
    model = tiny_model("llama", attention_dropout=0.5)
    model.train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    assert layout_of(model).name == "tree"  # dropout at work would have made the layouts differ
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())


def test_a_model_with_positions_of_its_own_is_found_out() -> None:
    """Positions counted along the row, deaf to position_ids: right in a padded row, wrong in a flat one."""
    model = tiny_model("llama")
    rotary = model.model.rotary_emb
    forward = rotary.forward
    rotary.forward = lambda x, position_ids: forward(
        x, torch.arange(position_ids.shape[1])[None].expand_as(position_ids)
    )
    choice = layout_of(model)
    assert choice.name == "padded" and "different hidden states" in choice.reason


def test_a_layer_that_hides_its_window_is_found_out() -> None:
    model = tiny_model("gemma3")
    model.model.layers[0].self_attn.sliding_window = None
    assert "do not tell the attention function" in layout_of(model).reason


def test_masks_that_only_show_far_apart_are_known_by_name() -> None:
    model = tiny_model("llama")
    model.config.attention_chunk_size = 4
    assert "attention_chunk_size" in layout_of(model).reason


def test_a_model_that_refuses_our_arguments_is_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("qwen2")
    attention = model.model.layers[1].self_attn
    inner = attention.forward

    def forward(hidden_states: Any, position_embeddings: Any, attention_mask: Any, past_key_values: Any = None,
                position_ids: Any = None, use_cache: Any = None) -> Any:  # fmt: skip
        return inner(hidden_states, position_embeddings, attention_mask, past_key_values)

    attention.forward = forward
    choice = layout_of(model)
    assert choice.name == "padded" and "TypeError" in choice.reason
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("arch", ["llama", "bloom"])
def test_an_unknown_output_layer_is_found_out_and_used(
    arch: str, row_logps: Any, grads_of: Any, caplog: pytest.LogCaptureFixture
) -> None:
    class Odd(type(tiny_model(arch))):  # type: ignore[misc]
        """Does to its logits what no config field says."""

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            out = super().forward(*args, **kwargs)
            out.logits = out.logits / (1 + out.logits.square()).sqrt()
            return out

    model = tiny_model(arch)
    model.__class__ = Odd
    examples = random_examples(2, completions=(2, 3), masked=True, prompt=(0, 3))
    examples[0].score_prompt = bool(examples[0].prompt_ids)
    with caplog.at_level(logging.WARNING):
        choice = layout_of(model)
    assert choice.own_head and "not one that strop knows" in caplog.text
    expected = row_logps(model, examples, 0.7)
    scores = score(model, examples, temperature=0.7, want=Want.LOGPS | Want.ENTROPY)
    assert torch.allclose(scores.logps, expected, atol=1e-10)
    assert torch.allclose(grads_of(model, scores.logps), grads_of(model, expected), atol=1e-9)


def test_encoder_decoders_are_refused() -> None:
    config = T5Config(vocab_size=16, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    with pytest.raises(SetupError, match="encoder-decoder"):
        layout_of(T5ForConditionalGeneration(config))


def test_foreign_modules_are_refused() -> None:
    with pytest.raises(SetupError, match="not a transformers model"):
        score(torch.nn.Linear(2, 2), random_examples(1))


@pytest.mark.parametrize("layout", ["tree", "packed"])
def test_a_layout_that_leaks_between_rows_is_refused(layout: str) -> None:
    model = tiny_model("bloom")
    with pytest.raises(ConfigError, match=rf"layout='{layout}' gives Bloom.*(relative difference|layers)"):
        score(model, random_examples(0, trees=2, completions=(1, 2)), layout=layout)


def test_the_padded_layout_keeps_a_models_own_head() -> None:
    """RecurrentGemma bounds its logits in its own forward, where no config says so."""
    model = recurrent_gemma()
    (example,) = random_examples(0, trees=1, completions=(1, 1))
    found = score(model, [example], layout="padded").logps
    ids = torch.tensor([example.prompt_ids + example.completions[0]])
    logps = model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
    expected = logps[len(example.prompt_ids) - 1 : -1].gather(1, torch.tensor(example.completions[0])[:, None])[:, 0]
    assert torch.allclose(found, expected, atol=1e-5)


def recurrent_gemma() -> Any:
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "lru_width": 16}
    sizes |= {"intermediate_size": 32, "num_hidden_layers": 3, "vocab_size": 64, "logits_soft_cap": 0.5}
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model("recurrent_gemma", **sizes)).float().eval()
