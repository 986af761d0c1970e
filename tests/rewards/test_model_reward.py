from __future__ import annotations

import math

import pytest
import torch

from strop.errors import ConfigError, SetupError
from strop.rewards import RewardModelJudge, RewardSet
from strop.rewards.load_reward import load_reward_model, wrap_reward_model
from strop.rewards.model_reward import ModelReward
from strop.rewards.process_reward import ProcessReward
from strop.rewards.reading import longest_input

TEXTS = ["a", "some longer answer", "", "mid one"]
PROMPTS = ["p", "a question?", "q", "prompt "]


def alone(model, ids):
    """The score of one unpadded sequence, by transformers' own modules."""
    with torch.no_grad():
        hidden = model.model(input_ids=torch.tensor([ids])).last_hidden_state
        return float(model.score(hidden[0, -1]))


def test_scores_are_read_at_the_last_real_token_though_pad_is_eos(make_model, tokenizer):
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    model = make_model("score")
    reward = ModelReward(model, tokenizer)
    scores = reward(PROMPTS, TEXTS)
    texts = [prompt + text for prompt, text in zip(PROMPTS, TEXTS, strict=True)]
    whole = [[*tokenizer(text, add_special_tokens=False)["input_ids"], 4] for text in texts]
    assert scores == pytest.approx([alone(model, ids) for ids in whole], abs=1e-12)
    # transformers' own pooling skips the end of text, which is what this class is for
    theirs = model(input_ids=torch.tensor([whole[0]])).logits.item()
    assert theirs == pytest.approx(alone(model, whole[0][:-1]), abs=1e-12)
    assert abs(theirs - scores[0]) > 1e-6


@pytest.mark.parametrize("max_tokens", [1, 30, 10_000])
def test_batching_changes_nothing(make_model, tokenizer, max_tokens):
    model = make_model("score")
    reward = ModelReward(model, tokenizer, max_tokens=max_tokens)
    assert reward(PROMPTS, TEXTS) == pytest.approx(ModelReward(model, tokenizer)(PROMPTS, TEXTS), abs=1e-12)


def test_absolute_positions_and_padding(tokenizer):
    from transformers import GPT2Config, GPT2ForSequenceClassification

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=16, n_layer=2, n_head=2, n_positions=64, num_labels=1, pad_token_id=4
    )
    model = GPT2ForSequenceClassification(config).double().eval()
    reward = ModelReward(model, tokenizer)
    together = reward(PROMPTS, TEXTS)
    apart = [reward([p], [c])[0] for p, c in zip(PROMPTS, TEXTS, strict=True)]
    assert together == pytest.approx(apart, abs=1e-12)


def test_an_encoder_uses_its_own_head(tokenizer):
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=1,
    )
    model = BertForSequenceClassification(config).double().eval()
    together = ModelReward(model, tokenizer)(PROMPTS, TEXTS)
    for prompt, text, score in zip(PROMPTS, TEXTS, together, strict=True):
        assert score == pytest.approx(model(**tokenizer(prompt + text, return_tensors="pt")).logits.item(), abs=1e-6)


def test_dropout_is_off_and_the_training_flag_comes_back(make_model, tokenizer):
    model = make_model("score")
    model.config.attention_dropout = 0.9
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.9
    model.train()
    reward = ModelReward(model, tokenizer)
    assert reward(["p"], ["abc"]) == reward(["p"], ["abc"])
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_long_inputs_lose_their_beginning_and_too_long_completions_abstain(make_model, tokenizer):
    model = make_model("score", positions=10)
    reward = ModelReward(model, tokenizer)
    assert reward.max_length == 10
    logged = []
    scores = reward(["x" * 50, "x" * 50, "x"], ["abc", "y" * 10, "z"], log_metric=lambda *pair: logged.append(pair))
    ids = tokenizer("x" * 6 + "abc", add_special_tokens=False)["input_ids"] + [4]
    assert scores[0] == pytest.approx(alone(model, ids), abs=1e-12)
    assert scores[1] is None and scores[2] is not None
    assert [value for _, value in logged] == [1.0, 1.0, 0.0]
    assert logged[0][0] == "rewards/LlamaForSequenceClassification/truncated"


def test_adapters_count(make_model, tokenizer):
    from peft import LoraConfig, get_peft_model

    model = make_model("score")
    plain = ModelReward(model, tokenizer)(["p"], ["abc"])
    torch.manual_seed(1)
    adapted = get_peft_model(model, LoraConfig(r=2, task_type="SEQ_CLS", init_lora_weights=False))
    reward = ModelReward(adapted, tokenizer)
    assert abs(reward(["p"], ["abc"])[0] - plain[0]) > 1e-6
    with adapted.disable_adapter():
        assert reward(["p"], ["abc"]) == pytest.approx(plain, abs=1e-12)


def test_adapters_alone_are_loaded(make_model, tokenizer, tmp_path):
    from peft import LoraConfig, get_peft_model

    base = make_model("score").float()
    base.save_pretrained(tmp_path / "base")
    base.config._name_or_path = base.name_or_path = str(tmp_path / "base")
    torch.manual_seed(1)
    adapted = get_peft_model(base, LoraConfig(r=2, task_type="SEQ_CLS", init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    loaded = load_reward_model(str(tmp_path / "adapter"), tokenizer, device="cpu")
    assert loaded(["p"], ["abc"]) == pytest.approx(ModelReward(adapted, tokenizer)(["p"], ["abc"]), abs=1e-5)


def test_a_language_model_is_no_reward_model(make_model, tokenizer, tmp_path):
    model = make_model("lm")
    with pytest.raises(ConfigError, match=r"no score head.*LanguageModelJudge"):
        wrap_reward_model(model, tokenizer)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(SetupError, match=r"no trained head: score.weight.*LanguageModelJudge"):
        load_reward_model(str(tmp_path), device="cpu")


def test_wrong_models_are_named(make_model, tokenizer, tmp_path):
    with pytest.raises(ConfigError, match="has 3 labels"):
        ModelReward(make_model("score", labels=3), tokenizer)
    with pytest.raises(ConfigError, match="without a tokenizer"):
        ModelReward(make_model("score"))
    with pytest.raises(SetupError, match="cannot be loaded"):
        load_reward_model(str(tmp_path / "nothing"))


def test_the_kind_of_head_decides(make_model, tokenizer):
    assert isinstance(wrap_reward_model(make_model("score"), tokenizer), ModelReward)
    assert isinstance(wrap_reward_model(make_model("step", labels=2), tokenizer), ProcessReward)


def test_longest_input(make_model, tokenizer):
    assert longest_input(make_model("score", positions=33), tokenizer) == 33
    tokenizer.model_max_length = 12
    assert longest_input(make_model("score", positions=33), tokenizer) == 12


def test_conversations_and_judging(make_model, tokenizer):
    reward = ModelReward(make_model("score"), tokenizer)
    prompt = [{"role": "user", "content": "hi"}]
    first, second = ([{"role": "assistant", "content": text}] for text in ("yes", "no way"))
    scores = reward([prompt, prompt], [first, second])
    (probability,) = RewardModelJudge(reward).probabilities([prompt], [(first, second)])
    assert probability == pytest.approx(1 / (1 + math.exp(scores[1] - scores[0])), abs=1e-12)


def test_failures_of_a_model_are_contained(make_model, tokenizer):
    reward = ModelReward(make_model("score"), tokenizer)

    def broken(sequences):
        raise RuntimeError("out of memory")

    reward._forward = broken
    with RewardSet(reward, on_error="skip") as rewards:
        table = rewards.score(["p", "q"], ["a", "b"])
    assert table.counts[reward.reward_name].errors == 2 and "out of memory" in table.failures[0]
