"""Reward models that a script hands over without their tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from strop.errors import ConfigError
from strop.testing.cases import letters_reward, make_trainer
from strop.testing.tiny import tiny_model
from strop.testing.tokenizers import toy_tokenizer

TOKENS = len(toy_tokenizer("plain"))


@pytest.mark.parametrize("verb", ["ppo", "online-dpo"])
def test_a_reward_model_made_in_code_reads_with_the_policys_tokenizer(verb: str, tmp_path: Path) -> None:
    model = tiny_model("llama", dtype=torch.float32, task="score", vocab_size=TOKENS)
    trainer = make_trainer(verb, tmp_path, trainer={"reward_funcs": model}, max_steps=1)
    assert trainer.reward_processing_classes == [trainer.processing_class]
    trainer.train()


def test_one_that_lacks_tokens_needs_its_own(tmp_path: Path) -> None:
    model = tiny_model("llama", dtype=torch.float32, task="score", vocab_size=TOKENS - 1)
    with pytest.raises(ConfigError, match="made in code comes without a tokenizer"):
        make_trainer("ppo", tmp_path, trainer={"reward_funcs": model})


def test_a_trainer_names_what_it_asks(tmp_path: Path) -> None:
    trainer = make_trainer(
        "grpo", tmp_path, trainer={"reward_funcs": [letters_reward, letters_reward]}, num_generations=2
    )
    assert trainer.reward_funcs == [letters_reward, letters_reward]
    assert list(trainer.reward_weights) == [1.0, 1.0]
    assert trainer.reward_func_names == ["letters_reward", "letters_reward_2"]
    distilled = make_trainer("gkd", tmp_path / "gkd")
    assert distilled.reward_funcs == [] and distilled.teacher_model is distilled.teacher
