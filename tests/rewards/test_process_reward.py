from __future__ import annotations

import math

import pytest
import torch

from strop.errors import ConfigError
from strop.rewards.process_reward import ProcessReward


def by_hand(model, tokenizer, prompt, steps, separator="\n"):
    """P(good) after each step, one unpadded forward over the whole."""
    ids = tokenizer(prompt + "".join(step + separator for step in steps), add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0]  # (T, 2)
    ends, at = [], len(prompt)
    for step in steps:
        at += len(step) + len(separator)
        ends.append(at - 1)
    return logits[ends].softmax(-1)[:, 1].tolist()


@pytest.fixture
def model(make_model):
    return make_model("step", labels=2)


COMPLETIONS = ["one\ntwo\nthree", "only", "a\n\nb\n"]
STEPS = [["one", "two", "three"], ["only"], ["a", "b"]]


def test_step_scores(model, tokenizer):
    reward = ProcessReward(model, tokenizer)
    scores = reward.step_scores(["p", "longer prompt", "q"], COMPLETIONS)
    for prompt, steps, found in zip(["p", "longer prompt", "q"], STEPS, scores, strict=True):
        assert found == pytest.approx(by_hand(model, tokenizer, prompt, steps), abs=1e-12)


@pytest.mark.parametrize(
    ("reduce", "function"),
    [("min", min), ("product", math.prod), ("mean", lambda s: sum(s) / len(s)), ("last", lambda s: s[-1])],
)
def test_reductions(model, tokenizer, reduce, function):
    reward = ProcessReward(model, tokenizer, reduce=reduce, max_tokens=20)
    expected = [function(by_hand(model, tokenizer, "p", steps)) for steps in STEPS]
    assert reward(["p"] * 3, COMPLETIONS) == pytest.approx(expected, abs=1e-12)


def test_nothing_to_score_abstains(model, tokenizer):
    reward = ProcessReward(model, tokenizer, max_length=20)
    logged = {}
    values = reward(["p"] * 3, ["", "ok", "x" * 30], log_extra=logged.__setitem__)
    assert values[0] is None and values[2] is None and 0 < values[1] < 1
    steps = logged["LlamaForTokenClassification/steps"]
    assert steps[0] == [] and steps[1] == [values[1]]


def test_conversations_and_separators(model, tokenizer):
    reward = ProcessReward(model, tokenizer, step_separator="##")
    prompt = [{"role": "user", "content": "hi"}]
    rendered = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    found = reward.step_scores([prompt], [[{"role": "assistant", "content": "a##b"}]])[0]
    for text, score in zip(["a##", "a##b##"], found, strict=True):
        whole = ids + tokenizer(text, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([whole])).logits[0, -1]
        assert score == pytest.approx(logits.softmax(-1)[1].item(), abs=1e-12)


def test_padding_is_hidden_from_models_that_look_both_ways(tokenizer):
    from transformers import BertConfig, BertForTokenClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(tokenizer), num_labels=2, initializer_range=0.5, **sizes)
    reward = ProcessReward(BertForTokenClassification(config).double().eval(), tokenizer)
    together = reward(["p"] * 3, COMPLETIONS)
    assert together == pytest.approx([reward(["p"], [text])[0] for text in COMPLETIONS], abs=1e-9)


def test_wrong_settings(make_model, model, tokenizer):
    with pytest.raises(ConfigError, match="Did you mean 'product'"):
        ProcessReward(model, tokenizer, reduce="prodcut")
    with pytest.raises(ConfigError, match="has 3 labels"):
        ProcessReward(make_model("step", labels=3), tokenizer)
