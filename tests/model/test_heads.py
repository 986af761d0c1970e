"""Scalar and step heads: the right position, whatever the pad id is, and heads put on causal models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.support.random_trees import random_examples
from transformers import AutoConfig, AutoModelForCausalLM, BertConfig, BertForSequenceClassification

from strop.errors import ConfigError, SetupError
from strop.model import layout_of, score, with_head
from strop.model.heads import head_class
from strop.records import Example, Want
from strop.testing.tiny import tiny_model

LAYOUTS = ("tree", "packed", "padded")


def states(model: Any, ids: list[int]) -> torch.Tensor:
    """(T, H) last hidden states of one row on its own."""
    return model.base_model(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0]


@pytest.mark.parametrize("arch", ["llama", "gpt2", "gemma3", "opt"])
@pytest.mark.parametrize("pad", [2, None, 7])
def test_scores_are_read_at_the_last_token_whatever_pad_is(arch: str, pad: int | None) -> None:
    model = tiny_model(arch, task="score", pad_token_id=pad)
    examples = [Example([5, 7], [[3, 4, 2], [6, 2, 2], [7]]), Example([2], [[2, 2]]), Example([], [[9, 2]])]
    rows = [example.prompt_ids + ids for example in examples for ids in example.completions]
    expected = torch.stack([model.score(states(model, ids)[-1])[0] for ids in rows])
    for layout in LAYOUTS:
        scores = score(model, examples, want=Want.SCORE, layout=layout).scores
        assert torch.allclose(scores, expected, atol=1e-10)
    if pad is None:  # then transformers reads the last position too
        logits = [model(input_ids=torch.tensor([ids])).logits[0, 0] for ids in rows]
        assert torch.allclose(expected, torch.stack(logits), atol=1e-10)


def test_score_gradients_agree(grads_of: Any) -> None:
    model = tiny_model("qwen3", task="score")
    examples = random_examples(4, completions=(2, 3))
    grads = [grads_of(model, score(model, examples, want=Want.SCORE, layout=name).scores) for name in LAYOUTS]
    assert torch.allclose(grads[0], grads[1], atol=1e-10) and torch.allclose(grads[0], grads[2], atol=1e-10)
    assert grads[0].any()


def test_values_are_read_where_tokens_are_predicted() -> None:
    model = tiny_model("llama", task="score")
    examples = [Example([5, 6], [[3, 4, 2], [6]]), Example([], [[9, 8, 7]])]
    expected = [model.score(states(model, [5, 6, 3, 4])[1:])[:, 0], model.score(states(model, [5, 6])[1:])[:, 0]]
    expected += [model.score(states(model, [9, 8]))[:, 0]]
    for layout in LAYOUTS:
        scores = score(model, examples, want=Want.VALUE, layout=layout)
        assert torch.allclose(scores.values, torch.cat(expected), atol=1e-10)
        assert scores.segment.tolist() == [0, 0, 0, 1, 2, 2]


@pytest.mark.parametrize("arch", ["llama", "gpt2"])  # the head is named score in one, classifier in the other
def test_steps_are_classified_at_their_own_tokens(arch: str) -> None:
    model = tiny_model(arch, task="step")
    examples = [Example([5, 6], [[3, 4, 2, 8]], loss_mask=[[0, 1, 0, 1]]), Example([], [[9, 8]], loss_mask=[[1, 1]])]
    head = model.score if arch == "llama" else model.classifier
    expected = torch.cat([head(states(model, [5, 6, 3, 4, 2, 8]))[[3, 5]], head(states(model, [9, 8]))])
    for layout in LAYOUTS:
        logits = score(model, examples, want=Want.STEP, layout=layout).step_logits
        assert torch.allclose(logits, expected, atol=1e-10)


def test_the_step_heads_dropout_acts_in_training_only() -> None:
    model = tiny_model("llama", task="step", classifier_dropout=0.5)
    examples = [Example([5], [[3, 4]])]
    exact = score(model, examples, want=Want.STEP).step_logits
    assert torch.equal(score(model, examples, want=Want.STEP).step_logits, exact)
    model.train()
    assert not torch.allclose(score(model, examples, want=Want.STEP).step_logits, exact, atol=1e-3)


@pytest.mark.parametrize("arch", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("task", ["score", "step"])
def test_a_head_on_a_copy_of_a_causal_model(arch: str, task: str, tmp_path: Any) -> None:
    causal = tiny_model(arch, dtype=torch.float32)
    torch.manual_seed(1)
    headed = with_head(causal, task)
    ids = [3, 4, 5]
    assert torch.equal(states(headed, ids), states(causal, ids))
    assert not {p.data_ptr() for p in headed.parameters()} & {p.data_ptr() for p in causal.parameters()}
    assert all(p.device.type == "cpu" and p.dtype == torch.float32 for p in headed.parameters())
    assert headed.config.num_labels == {"score": 1, "step": 2}[task]
    want = Want.SCORE if task == "score" else Want.STEP
    scores = score(headed, [Example(ids, [[6, 7]])], want=want)
    values = scores.scores if task == "score" else scores.step_logits
    assert values.isfinite().all() and values.any()
    headed.save_pretrained(tmp_path)
    loaded = head_class(headed.config, task).from_pretrained(tmp_path)
    again = score(loaded, [Example(ids, [[6, 7]])], want=want)
    assert torch.equal(again.scores if task == "score" else again.step_logits, values)


def test_every_weight_of_a_fresh_head_is_drawn() -> None:
    """ModernBERT's head has a norm, which would hold what the memory held before."""
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 4}
    sizes |= {"num_hidden_layers": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("modernbert-decoder", **sizes, sep_token_id=2))
    empty = torch.nn.Module.to_empty

    def filled(module: torch.nn.Module, **options: Any) -> torch.nn.Module:
        for parameter in empty(module, **options).parameters():
            torch.nn.init.constant_(parameter, 1e30)
        return module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.Module, "to_empty", filled)
        head = with_head(model, "score")
    assert max(float(parameter.detach().abs().max()) for parameter in head.parameters()) < 10


def test_more_labels_than_one_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_labels=1"):
        score(tiny_model("llama", task="score", num_labels=3), [Example([1], [[2]])], want=Want.SCORE)
    with pytest.raises(SetupError, match="two labels"):
        score(tiny_model("llama", task="step", num_labels=3), [Example([1], [[2]])], want=Want.STEP)


def bert(labels: int) -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=64,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=labels,
    )
    return BertForSequenceClassification(config).eval()


def test_classifiers_with_their_own_pooling_keep_it() -> None:
    model = bert(1)
    examples = [Example([5, 6], [[3, 4, 2], [6]])]
    expected = torch.cat([model(input_ids=torch.tensor([[5, 6, *ids]])).logits[0] for ids in examples[0].completions])
    assert torch.allclose(score(model, examples, want=Want.SCORE).scores, expected, atol=1e-5)
    assert layout_of(model).name == "padded" and "own way" in layout_of(model).reason
    with pytest.raises(SetupError, match="a reward is one"):
        score(bert(3), examples, want=Want.SCORE)
