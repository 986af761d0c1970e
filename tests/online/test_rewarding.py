"""Reward models that a script hands over without their tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from strop.errors import ConfigError
from strop.testing.cases import make_trainer
from strop.testing.tiny import tiny_model
from strop.testing.tokenizers import toy_tokenizer

TOKENS = len(toy_tokenizer("plain"))


@pytest.mark.parametrize("verb", ["ppo", "online-dpo"])
def test_a_reward_model_made_in_code_reads_with_the_policys_tokenizer(verb: str, tmp_path: Path) -> None:
    model = tiny_model("llama", dtype=torch.float32, task="score", vocab_size=TOKENS)
    trainer = make_trainer(verb, tmp_path, trainer={"reward_funcs": model}, max_steps=1)
    assert trainer.rewards.functions[0].tokenizer is trainer.processing_class
    trainer.train()


def test_one_that_lacks_tokens_needs_its_own(tmp_path: Path) -> None:
    model = tiny_model("llama", dtype=torch.float32, task="score", vocab_size=TOKENS - 1)
    with pytest.raises(ConfigError, match="made in code comes without a tokenizer"):
        make_trainer("ppo", tmp_path, trainer={"reward_funcs": model})
