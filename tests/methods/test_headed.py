"""Reward, PRM and PPO of an architecture without classification classes in transformers: trained, saved, gone on with,
and used as a reward."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from tests.support.resume import cut_off, record, unlike
from transformers import AutoModelForCausalLM

from strop.model import load_model, score
from strop.model.headed import HeadOnStates
from strop.records import Example, Want
from strop.rewards.load_reward import load_reward_model
from strop.testing.cases import make_trainer, rows_for
from strop.testing.tiny import tiny_model
from strop.testing.tokenizers import toy_tokenizer

TASKS = {"reward": ("score", Want.SCORE), "prm": ("step", Want.STEP)}
EXAMPLE = Example([20, 21, 22], [[23, 24], [25, 26, 27]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("granite")
    tiny_model("granite", dtype=torch.float32, vocab_size=len(toy_tokenizer())).save_pretrained(path)
    return path


@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("verb", TASKS)
def test_trained_saved_and_loaded_with_the_same_scores(verb: str, tuning: str, folder: Path, tmp_path: Path) -> None:
    extra = {"peft_config": LoraConfig(r=2, target_modules="all-linear")} if tuning == "lora" else {}
    trainer = make_trainer(verb, tmp_path, model=str(folder), trainer=extra, max_steps=2, logging_steps=1)
    head = trainer.policy.score if tuning == "full" else trainer.policy.base_model.model.score.modules_to_save.default
    before = head.weight.detach().clone()
    trainer.train()
    assert not torch.equal(head.weight, before) and trainer.layout.name == "tree"
    trainer.save_model(str(tmp_path / "out"))
    task, want = TASKS[verb]
    assert f'task="{task}"' in (tmp_path / "out" / "README.md").read_text()
    again = load_model(tmp_path / "out", task=task, trainable=False, fresh_head=False)
    with torch.no_grad():
        found = [score(model, [EXAMPLE], want=want) for model in (trainer.policy.eval(), again)]
    numbers = [scores.scores if verb == "reward" else scores.step_logits for scores in found]
    assert numbers[0] is not None and torch.allclose(numbers[0], numbers[1], atol=1e-6)
    if tuning == "full":
        reward = load_reward_model(str(tmp_path / "out"), toy_tokenizer())
        assert len(reward(["cat dog"], [" elk fox"])) == 1


def test_a_run_goes_on_byte_for_byte(tmp_path: Path) -> None:
    options = {"arch": "cohere", "num_train_epochs": 1}
    whole = record("reward", tmp_path / "whole", options, save_at=[2])
    cut_off(tmp_path / "whole", 2, tmp_path / "cut")
    assert unlike(whole, record("reward", tmp_path / "cut", options, resume=True), 2) == []


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_ppo_has_a_critic_saves_it_and_takes_it_back(tuning: str, folder: Path, tmp_path: Path) -> None:
    reward = tmp_path / "reward"
    make_trainer("reward", reward, model=str(folder)).save_model(str(reward))
    extra = {"peft_config": LoraConfig(r=2, target_modules="all-linear")} if tuning == "lora" else {}
    options = {"rows": rows_for("ppo", 4), "per_device_train_batch_size": 2, "max_completion_length": 4, "max_steps": 1}
    trainer = make_trainer(
        "ppo", tmp_path / "run", model=str(folder), trainer={"reward_funcs": str(reward), **extra}, **options
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "out"))
    critic = tmp_path / "out" / "value_model"
    assert 'task="score"' in (critic / "README.md").read_text()
    if tuning == "full":
        assert isinstance(trainer.model.critic, HeadOnStates)
        AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    again = load_model(critic, task="score", trainable=False, fresh_head=False)
    with torch.no_grad():
        values = [score(model, [EXAMPLE], want=Want.VALUE).values for model in (trainer.model.critic.eval(), again)]
    assert values[0] is not None and torch.allclose(values[0], values[1], atol=1e-6)
