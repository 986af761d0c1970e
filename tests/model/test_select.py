"""layout="auto" is what the model was seen to do, and looking leaves no trace."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from tests.support.random_trees import random_examples
from transformers import AutoConfig, AutoModelForCausalLM, T5Config, T5ForConditionalGeneration

from strop.errors import ConfigError, SetupError
from strop.model import confirm_layout, layout_of, score, score_batch
from strop.records import Want
from strop.testing.tiny import tiny_model


@pytest.mark.parametrize(
    ("arch", "reason"),
    [
        ("bloom", "0 of its 2 layers use transformers' attention interface"),
        ("mamba", "0 of its 2 layers use transformers' attention interface"),
    ],
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


@pytest.mark.parametrize(
    ("arch", "far"),
    [
        ("phimoe", {"sliding_window": 4096}),  # in its mask, which a flat row does not get
        ("llama4_text", {"attention_chunk_size": 8192, "layer_types": ["chunked_attention", "full_attention"]}),
    ],
)
def test_what_shows_far_apart_only_is_seen_on_a_twin(arch: str, far: dict[str, Any]) -> None:
    reason = layout_of(causal(arch, num_local_experts=4, **far)).reason
    assert f"{next(iter(far))}={next(iter(far.values()))}" in reason and "beyond tree and padded rows differ" in reason


def test_a_window_that_the_attention_is_told_may_stay_far(row_logps: Any) -> None:
    assert layout_of(tiny_model("mistral", sliding_window=4096)).name == "tree"


def test_distances_that_cannot_be_tried_are_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("strop.model.select.twin_of", lambda decoder: None)
    reason = layout_of(tiny_model("mistral")).reason
    assert "sliding_window=8" in reason and "could not be tried" in reason


def deaf_beyond(model: Any, length: int) -> Any:
    """Counts positions above `length` along the row, as no config says."""
    forward = model.model.rotary_emb.forward
    counted = lambda p: torch.where(p < length, p, torch.arange(p.shape[1])[None].expand_as(p))  # noqa: E731
    model.model.rotary_emb.forward = lambda x, position_ids: forward(x, counted(position_ids))
    return model


def test_the_first_real_rows_are_held_against_rows_alone() -> None:
    model, examples = deaf_beyond(tiny_model("llama"), 12), random_examples(1, prompt=(14, 20), completions=(2, 3))
    assert layout_of(model).name == "tree"
    problem = confirm_layout(model, examples, lambda batch: score_batch(model, batch, Want.HIDDEN))
    assert problem is not None and "single rows give different hidden states" in problem
    assert layout_of(model).name == "padded" and problem in layout_of(model).reason
    healthy = tiny_model("llama")
    assert confirm_layout(healthy, examples, lambda batch: score_batch(healthy, batch, Want.HIDDEN)) is None


@pytest.mark.parametrize("arch", ["llama4_text", "modernbert-decoder", "afmoe"])
def test_stacks_and_heads_that_are_named_oddly(arch: str, row_logps: Any) -> None:
    """Two whose `get_decoder` is not their stack of layers, and one that takes views of what attention returns."""
    sizes = {
        "sliding_window": 8,
        "num_dense_layers": 1,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "num_local_experts": 4,
    }
    model, examples = causal(arch, **sizes), random_examples(2, prompt=(3, 14), length=(2, 9))
    assert torch.allclose(score(model, examples).logps, row_logps(model, examples), atol=1e-5)


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


def test_models_that_look_ahead_are_refused() -> None:
    with pytest.raises(SetupError, match=r"BertLMHeadModel looks at tokens that come later.*is_decoder=True"):
        layout_of(causal("bert"))
    assert layout_of(causal("bert", is_decoder=True)).name == "tree"


def test_layers_between_the_stack_and_the_output_layer_are_run(row_logps: Any) -> None:
    model, examples = causal("electra", is_decoder=True, embedding_size=16), random_examples(2)
    assert layout_of(model).own_head
    assert torch.allclose(score(model, examples).logps, row_logps(model, examples), atol=1e-5)


def test_foreign_modules_are_refused() -> None:
    with pytest.raises(SetupError, match="not a transformers model"):
        score(torch.nn.Linear(2, 2), random_examples(1))


@pytest.mark.parametrize("layout", ["tree", "packed"])
def test_a_layout_that_leaks_between_rows_is_refused(layout: str) -> None:
    model = tiny_model("bloom")
    with pytest.raises(ConfigError, match=rf"layout='{layout}' gives Bloom.*(relative difference|layers)"):
        score(model, random_examples(0, trees=2, completions=(1, 2)), layout=layout)


@pytest.mark.parametrize("cap", [0.5, 100.0])
def test_the_padded_layout_keeps_a_models_own_head(cap: float) -> None:
    """RecurrentGemma bounds its logits in its own forward, where no config says so; by a little, too."""
    sizes = {"num_key_value_heads": 1, "lru_width": 32, "num_hidden_layers": 3, "logits_soft_cap": cap}
    model = causal("recurrent_gemma", **sizes)
    (example,) = random_examples(0, trees=1, completions=(1, 1))
    found = score(model, [example], layout="padded").logps
    ids = torch.tensor([example.prompt_ids + example.completions[0]])
    logps = model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
    expected = logps[len(example.prompt_ids) - 1 : -1].gather(1, torch.tensor(example.completions[0])[:, None])[:, 0]
    assert torch.allclose(found, expected, atol=1e-5)


def causal(arch: str, **fields: Any) -> Any:
    """A small float32 model of an architecture that `tiny_model` does not know; wide weights, dropout as it comes."""
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 64}
    sizes |= {"intermediate_size": 32, "moe_intermediate_size": 16, "num_hidden_layers": 2, "pad_token_id": 0} | fields
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(arch, **sizes)).float().eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and "rg_lru" not in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


SPARSE = {
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8,
    "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2, "index_topk": 64,
    "index_head_dim": 16, "num_key_value_heads": 4, "first_k_dense_replace": 1,
}  # fmt: skip


def test_what_a_sparse_index_selects_must_not_depend_on_padding() -> None:
    """With few index heads many tokens have the score 0, and which of them are taken depends on the row's length."""
    with pytest.raises(SetupError, match=r"for a row that is padded.*difference \d.*beyond index_topk=64"):
        layout_of(causal("deepseek_v32", **SPARSE, index_n_heads=1))
    assert layout_of(causal("deepseek_v32", **SPARSE, index_n_heads=16)).name == "padded"


def test_padding_that_is_seen_is_refused() -> None:
    model = causal("bloom")
    forward = model.transformer.h[0].forward
    bias = torch.linspace(-1, 1, 32)
    model.transformer.h[0].forward = lambda x, *args, **kw: forward(x + x.shape[1] * bias, *args, **kw)
    with pytest.raises(SetupError, match="BloomForCausalLM gives other numbers for a row that is padded"):
        layout_of(model)


@pytest.mark.parametrize("training", [True, False])
def test_layers_that_cannot_compute_rows_of_any_length_are_refused(training: bool) -> None:
    model = causal("bloom")
    layer = model.transformer.h[1]
    inner = layer.forward

    def forward(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if layer.training == training and hidden.shape[1] % 16:
            raise ValueError("the length must be a multiple of 16")
        return inner(hidden, *args, **kwargs)

    layer.forward = forward
    what = "be trained on" if training else "compute"
    with pytest.raises(SetupError, match=rf"BloomForCausalLM cannot {what} three short rows.*a multiple of 16"):
        layout_of(model)
    assert not any(module.training for module in model.modules())


def test_positions_that_are_counted_from_the_padding_id_are_refused() -> None:
    from transformers import RobertaConfig, RobertaForCausalLM

    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = RobertaForCausalLM(RobertaConfig(vocab_size=64, is_decoder=True, **size)).eval()
    with pytest.raises(SetupError, match="numbers positions by its padding token"):
        layout_of(model)
