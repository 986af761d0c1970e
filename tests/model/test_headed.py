"""Heads on causal models for which transformers has no classification class: same scores after saving, with adapters
and in every layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.random_trees import random_examples
from transformers import AutoConfig, AutoModelForCausalLM

from strop.errors import SetupError
from strop.model import load_model, score, with_head
from strop.model.headed import HeadOnStates, headed_class, note_loading
from strop.model.heads import head_class
from strop.records import Example, Want
from strop.testing.tiny import tiny_model

TINY = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 4, "mamba_n_groups": 1, "mamba_chunk_size": 8}
WITHOUT_CLASS: dict[str, dict[str, Any]] = {
    "cohere": {"tie_word_embeddings": True},
    "granite": {},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "mamba": {"state_size": 4},
    "falcon_h1": {**MAMBA, "mamba_d_ssm": 64},
    "bamba": {**MAMBA, "attn_layer_indices": [1]},
    "nemotron_h": {
        "layers_block_type": ["mamba", "attention", "moe"], "num_hidden_layers": None, "n_groups": 1,
        "mamba_num_heads": 4, "mamba_head_dim": 16, "ssm_state_size": 4, "chunk_size": 8, "n_routed_experts": 4,
        "moe_intermediate_size": 16, "moe_shared_expert_intermediate_size": 16, "use_mamba_kernels": False,
    },
    "gemma4_text": {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 64, "global_head_dim": 8},
}  # fmt: skip
PAIRS = [Example([5, 7, 9], [[3, 4, 2], [6]]), Example([8], [[9, 2], [7, 7, 7]])]
WANT = {"score": Want.SCORE, "step": Want.STEP}


def causal(arch: str) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(arch, **TINY | WITHOUT_CLASS[arch])).eval()


def numbers(model: Any, task: str, examples: list[Example] = PAIRS, **options: Any) -> torch.Tensor:
    scores = score(model, examples, want=WANT[task], **options)
    found = scores.scores if task == "score" else scores.step_logits
    assert found is not None
    return found


@pytest.mark.parametrize("task", ["score", "step"])
@pytest.mark.parametrize("arch", WITHOUT_CLASS)
def test_a_head_is_the_linear_map_of_the_last_states_and_survives_saving(arch: str, task: str, tmp_path: Path) -> None:
    language_model = causal(arch)
    assert head_class(language_model.config, task) is None
    model = with_head(language_model, task)
    ids = PAIRS[0].prompt_ids + PAIRS[0].completions[0]
    with torch.no_grad():
        states = model.get_decoder()(input_ids=torch.tensor([ids])).last_hidden_state[0]  # (T, H)
        expected = model.score(states)[-1 if task == "score" else slice(3, None)]
        own = model(input_ids=torch.tensor([[*ids, 0]]), attention_mask=torch.tensor([[1] * len(ids) + [0]])).logits[0]
        assert expected.any()
        assert torch.allclose(numbers(model, task)[: len(expected)].flatten(), expected.flatten(), atol=1e-5)
        assert torch.allclose(own[3:-1] if task == "step" else own, expected, atol=1e-5)
        model.save_pretrained(tmp_path)
        again = load_model(tmp_path, task=task, fresh_head=False)
        assert type(again) is type(model)
        assert torch.equal(numbers(again, task), numbers(model, task))
    names = {name for name, _ in model.named_parameters()}
    assert not any("head" in name and "mamba" not in name for name in names) and "score.weight" in names


def test_a_language_models_folder_gets_a_fresh_head_once(tmp_path: Path) -> None:
    language_model = causal("cohere")
    language_model.save_pretrained(tmp_path)
    torch.manual_seed(3)
    model = load_model(tmp_path, task="score")
    assert torch.equal(model.model.embed_tokens.weight, language_model.model.embed_tokens.weight)
    assert 0.01 < float(model.score.weight.detach().std()) < 0.03
    with pytest.raises(SetupError, match=r"no trained head: score.weight"):
        load_model(tmp_path, task="score", fresh_head=False)


def test_prompts_are_shared_with_the_same_scores_and_gradients(grads_of: Any) -> None:
    model = with_head(tiny_model("granite"), "score")
    examples = random_examples(4, completions=(2, 3))
    grads = [
        grads_of(model, numbers(model, "score", examples, layout=layout)) for layout in ("tree", "packed", "padded")
    ]
    assert torch.allclose(grads[0], grads[1], atol=1e-10) and torch.allclose(grads[0], grads[2], atol=1e-10)


def test_an_adapter_is_saved_with_its_head(tmp_path: Path) -> None:
    import peft

    base = tmp_path / "base"
    causal("granite").save_pretrained(base)
    model = peft.get_peft_model(
        load_model(base, task="score"), peft.LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"], r=2)
    )
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.normal_()
    model.eval().save_pretrained(tmp_path / "adapter")
    note_loading(model, tmp_path / "adapter")
    again = load_model(tmp_path / "adapter", task="score", trainable=False)
    assert torch.equal(numbers(again, "score"), numbers(model, "score"))
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert 'load_model("path/or/id", task="score")' in card and "library_name: peft" in card


def test_the_card_says_how_to_load_once_and_only_where_it_must(tmp_path: Path) -> None:
    model = with_head(causal("granite"), "step")
    for _ in range(2):
        note_loading(model, tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert card.count("GraniteForTokenClassification") == 1 and 'task="step"' in card
    (tmp_path / "README.md").unlink()
    note_loading(tiny_model("llama", task="score"), tmp_path)
    assert not (tmp_path / "README.md").exists()


@pytest.mark.parametrize(
    ("arch", "fields"), [("rembert", {"output_embedding_size": 24}), ("electra", {"embedding_size": 16})]
)
def test_a_head_is_as_wide_as_the_states_whatever_the_output_layer_reads(arch: str, fields: dict[str, Any]) -> None:
    config = AutoConfig.for_model(arch, **{n: v for n, v in TINY.items() if n != "head_dim"}, is_decoder=True, **fields)
    model = with_head(AutoModelForCausalLM.from_config(config).eval(), "score")
    assert model.score.in_features == 32 and numbers(model, "score").isfinite().all()


@pytest.mark.parametrize("task", ["causal", "score"])
@pytest.mark.parametrize("arch", ["emu3_text_model", "mllama_text_model"])
def test_the_text_part_of_a_model_of_images_loads_as_it_was_saved(arch: str, task: str, tmp_path: Path) -> None:
    """Its config is in no mapping of transformers; the class is the one that it names."""
    import transformers

    cls = {"emu3_text_model": transformers.Emu3ForCausalLM, "mllama_text_model": transformers.MllamaForCausalLM}[arch]
    sizes = TINY | ({"cross_attention_layers": []} if arch.startswith("mllama") else {})
    model = cls(AutoConfig.for_model(arch, **sizes)).eval()
    model = model if task == "causal" else with_head(model, task)
    model.save_pretrained(tmp_path)
    again = load_model(tmp_path, task=task, fresh_head=False)
    assert type(again) is type(model)
    want = Want.LOGPS if task == "causal" else Want.SCORE
    found, expected = (score(m, PAIRS, want=want) for m in (again, model))
    assert torch.equal(*((s.logps if task == "causal" else s.scores) for s in (found, expected)))


def test_classes_are_made_once_and_named_as_transformers_names_its_own() -> None:
    made = headed_class(type(causal("cohere")), "score")
    assert made is headed_class(type(causal("cohere")), "score")
    assert made.__name__ == "CohereForSequenceClassification" and issubclass(made, HeadOnStates)
    assert not made.can_generate()


def test_a_decoder_of_an_encoder_family_is_read_at_its_last_token(tmp_path: Path) -> None:
    """transformers' BERT and BART classifiers pool as encoders do: the first token, which sees nothing here."""
    config = AutoConfig.for_model("bert", **TINY, is_decoder=True)
    model = with_head(AutoModelForCausalLM.from_config(config).eval(), "score")
    with torch.no_grad():
        assert len({round(float(value), 6) for value in numbers(model, "score")}) == 4
        model.save_pretrained(tmp_path)
        again = load_model(tmp_path, task="score", fresh_head=False)
        assert torch.equal(numbers(again, "score"), numbers(model, "score"))
    assert type(again).__name__ == "BertLMHeadModelForSequenceClassification"
