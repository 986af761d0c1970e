"""A reference, a teacher or a reward that is made of the weights that are trained would follow them without a word."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig

from strop.errors import ConfigError
from strop.testing.cases import make_trainer
from strop.testing.tiny import tiny_model

LORA = {"peft_config": LoraConfig(target_modules=["q_proj"])}


def model(task: str = "causal") -> Any:
    return tiny_model("llama", dtype=torch.float32, vocab_size=288, task=task)


@pytest.mark.parametrize(("verb", "name"), [("dpo", "ref_model"), ("kto", "ref_model"), ("gkd", "teacher_model")])
@pytest.mark.parametrize("adapter", [False, True])
def test_a_model_over_the_same_layers_is_refused(verb: str, name: str, adapter: bool, tmp_path: Path) -> None:
    """With an adapter: the base, into whose layers the adapter was put."""
    policy = model()
    other = policy if adapter else copy.copy(policy)
    with pytest.raises(ConfigError, match=f"{name} shares weights with the model that is trained"):
        make_trainer(verb, tmp_path, model=policy, trainer={name: other, **(LORA if adapter else {})})


def test_a_reward_that_is_the_critic_is_refused(tmp_path: Path) -> None:
    scorer = model("score")
    with pytest.raises(ConfigError, match=r"The reward '.*' shares weights"):
        make_trainer("ppo", tmp_path, trainer={"reward_funcs": scorer, "value_model": scorer})
    make_trainer("ppo", tmp_path, trainer={"reward_funcs": copy.deepcopy(scorer), "value_model": scorer})


def test_a_reward_over_the_layers_of_the_policy_is_refused(tmp_path: Path) -> None:
    policy, scorer = model(), model("score")
    scorer.model = policy.model
    with pytest.raises(ConfigError, match=r"The reward '.*' shares weights"):
        make_trainer("grpo", tmp_path, model=policy, num_generations=2, trainer={"reward_funcs": scorer})


def test_the_model_itself_as_its_reference_is_copied(tmp_path: Path) -> None:
    policy = model()
    trainer = make_trainer("dpo", tmp_path, model=policy, trainer={"ref_model": policy})
    assert not {*map(id, trainer.reference.model.parameters())} & {*map(id, policy.parameters())}
