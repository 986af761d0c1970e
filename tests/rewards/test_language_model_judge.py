from __future__ import annotations

import pytest
import torch

from strop.errors import ConfigError, SetupError
from strop.rewards.judges import JUDGE_INSTRUCTION, judge_question
from strop.rewards.language_model_judge import LanguageModelJudge
from strop.testing.tiny import tiny_model

PROMPTS = ["2 + 2?", "a much longer request, with more words"]
PAIRS = [("4", "5"), ("yes, sure", "no")]


@pytest.fixture
def model(make_model):
    return make_model("lm", positions=2048)


def p_of_a(model, tokenizer, prompt, first, second, chat):
    """One unpadded forward, the whole vocabulary."""
    text = judge_question(JUDGE_INSTRUCTION, prompt, first, second)
    if chat:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
        )
    else:
        text += "\nBetter answer:"
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logps = model(input_ids=ids).logits[0, -1].log_softmax(-1)
    a, b = (logps[tokenizer.convert_tokens_to_ids(letter)].exp() for letter in "AB")
    return float(a / (a + b))


@pytest.mark.parametrize("chat", [True, False])
def test_the_probability_of_the_letters_averaged_over_both_orders(model, make_tokenizer, chat):
    tokenizer = make_tokenizer(chat=chat)
    found = LanguageModelJudge(model, tokenizer).probabilities(PROMPTS, PAIRS)
    for prompt, (first, second), probability in zip(PROMPTS, PAIRS, found, strict=True):
        there = p_of_a(model, tokenizer, prompt, first, second, chat)
        back = p_of_a(model, tokenizer, prompt, second, first, chat)
        assert probability == pytest.approx((there + 1 - back) / 2, abs=1e-6)
        assert abs(there - (1 - back)) > 1e-6  # this model does have a position bias


def test_swapping_a_pair_turns_its_probability_around(model, tokenizer):
    judge = LanguageModelJudge(model, tokenizer, max_tokens=300)
    there = judge.probabilities(PROMPTS, PAIRS)
    back = judge.probabilities(PROMPTS, [(second, first) for first, second in PAIRS])
    assert [a + b for a, b in zip(there, back, strict=True)] == pytest.approx([1.0, 1.0], abs=1e-6)
    assert judge.compare(PROMPTS, PAIRS) == [int(p < 0.5) for p in there]


def test_questions_that_are_too_long_get_no_verdict(model, tokenizer):
    judge = LanguageModelJudge(model, tokenizer, max_length=500)
    assert judge.compare(["p", "p"], [("x" * 1000, "b"), ("a", "b")])[0] is None
    assert judge.probabilities(["p"], [("a", "b")])[0] is not None


def test_it_is_loaded_from_a_directory(model, tokenizer, tmp_path):
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = LanguageModelJudge(str(tmp_path), device="cpu")
    expected = LanguageModelJudge(model, tokenizer).probabilities(PROMPTS, PAIRS)
    assert loaded.probabilities(PROMPTS, PAIRS) == pytest.approx(expected, abs=1e-4)


def test_models_that_cannot_judge(model, tokenizer, tmp_path):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    numbers = Tokenizer(models.WordLevel({"<unk>": 0, "1": 1}, unk_token="<unk>"))
    with pytest.raises(ConfigError, match="tokens of their own for 'A' and 'B'"):
        LanguageModelJudge(model, PreTrainedTokenizerFast(tokenizer_object=numbers, unk_token="<unk>"))
    with pytest.raises(ConfigError, match="without a tokenizer"):
        LanguageModelJudge(model)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(SetupError, match=r"no config\.json"):
        LanguageModelJudge(str(tmp_path), tokenizer)


@pytest.mark.parametrize("arch", ["cohere", "gemma2"])  # a scale, a cap
def test_the_letters_are_as_probable_as_the_model_says(arch, tokenizer):
    scales = {"cohere": {"logit_scale": 0.1}, "gemma2": {"final_logit_softcapping": 0.5}}[arch]
    model = tiny_model(arch, vocab_size=len(tokenizer), max_position_embeddings=2048, **scales)
    (found,) = LanguageModelJudge(model, tokenizer).probabilities(PROMPTS[:1], PAIRS[:1])
    there = p_of_a(model, tokenizer, PROMPTS[0], *PAIRS[0], True)
    back = p_of_a(model, tokenizer, PROMPTS[0], *reversed(PAIRS[0]), True)
    assert found == pytest.approx((there + 1 - back) / 2, abs=1e-6)
