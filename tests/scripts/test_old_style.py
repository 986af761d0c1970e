"""Code from other years, and what hands write by mistake: it works here, or the error says what to write instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import strop
from strop.errors import ConfigError
from strop.methods.registry import METHODS
from strop.rewards import RuleJudge
from strop.testing.cases import letters_reward, rows_for

QUICK = {"max_steps": 1, "report_to": "none", "logging_steps": 1}


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def train(trainer: Any) -> Any:
    trainer.train()
    assert trainer.state.global_step >= 1
    return trainer


def test_all_fifteen_are_at_the_top() -> None:
    for method in METHODS:
        assert getattr(strop, method.trainer_name).config_class is getattr(strop, method.config_name)
    with pytest.raises(AttributeError, match="Did you mean 'GRPOTrainer'"):
        _ = strop.GRPTrainer


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("RLOOConfig", {"num_samples": 4, "kl_coef": 0.07}, {"num_generations": 4, "beta": 0.07}),
        ("RLOOConfig", {"rloo_k": 3, "response_length": 9}, {"num_generations": 3, "max_completion_length": 9}),
        ("RLOOConfig", {"num_generations": 4, "beta": 0.05}, {"num_generations": 4, "beta": 0.05}),
        ("OnlineDPOConfig", {"beta": 0.2, "num_generations": 2}, {"beta": 0.2, "num_generations": 2}),
        ("OnlineDPOConfig", {"beta": [0.1], "max_new_tokens": 7}, {"max_completion_length": 7}),
        ("GKDConfig", {"temperature": 2.0}, {"temperature": 2.0, "kd_temperature": 1.0}),
        ("PPOConfig", {"num_ppo_epochs": 3, "kl_coef": 0.1}, {"num_iterations": 3, "beta": 0.1}),
        ("SFTConfig", {"max_seq_length": 77}, {"max_length": 77}),
        ("DPOConfig", {"max_prompt_length": 5, "max_completion_length": 6}, {"max_prompt_length": 5}),
        ("DPOConfig", {"generate_during_eval": True}, {"generate_during_eval": True}),
        ("DPOConfig", {"loss_type": "ipo"}, {"loss_type": ["ipo"]}),
        ("KTOConfig", {"max_prompt_length": 5}, {"max_prompt_length": 5}),
        ("ORPOConfig", {"max_prompt_length": 5}, {"max_prompt_length": 5}),
        ("GRPOConfig", {"max_prompt_length": 5, "scale_rewards": False}, {"scale_rewards": "none"}),
        ("GRPOConfig", {"vllm_importance_sampling_cap": 2.0}, {"vllm_importance_sampling_clip_max": 2.0}),
        ("SFTConfig", {"evaluation_strategy": "steps", "eval_steps": 5}, {"eval_strategy": "steps"}),
    ],
    ids=str,
)
def test_old_names_of_settings(name: str, old: dict[str, Any], new: dict[str, Any]) -> None:
    config = getattr(strop, name)(**old)
    assert {field: getattr(config, field) for field in new} == new


@pytest.mark.parametrize(
    ("name", "old", "message"),
    [
        ("DPOConfig", {"rpo_alpha": 1.0}, r"loss_type=\['sigmoid', 'sft'\]"),
        ("DPOConfig", {"reference_free": True}, "Use CPOTrainer"),
        ("GRPOConfig", {"use_liger_loss": True}, "bounded memory"),
        ("SFTConfig", {"neftune_alpha": 5}, "Did you mean 'neftune_noise_alpha'"),
        ("KTOConfig", {"bta": 0.1}, "Did you mean 'beta'"),
        ("GRPOConfig", {"loss_type": "dpao"}, "Did you mean 'dapo'"),
        ("DPOConfig", {"loss_type": "sigmiod"}, "sigmoid"),
        ("GRPOConfig", {"num_generations": 1}, "set 2 or more"),
        ("GRPOConfig", {"steps_per_generation": 2, "generation_batch_size": 8}, "keep one"),
        ("SFTConfig", {"auto_find_batch_size": True}, "max_tokens_per_micro_batch"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_meant(name: str, old: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        getattr(strop, name)(**old)


def test_reward_model_is_another_name_of_reward_funcs(models: dict[str, str]) -> None:
    args = strop.RLOOConfig(**QUICK, num_generations=2, per_device_train_batch_size=4)
    given = {"args": args, "train_dataset": rows_for("rloo", 4)}
    trainer = train(strop.RLOOTrainer(models["model_id"], reward_model=models["reward_model_id"], **given))
    assert f"rewards/{Path(models['reward_model_id']).name}/mean" in trainer.state.log_history[0]
    with pytest.raises(ConfigError, match="names for one thing"):
        strop.RLOOTrainer(models["model_id"], letters_reward, reward_model=models["reward_model_id"], **given)


def test_the_first_rloo_constructor_is_explained(models: dict[str, str]) -> None:
    with pytest.raises(ConfigError) as error:
        strop.RLOOTrainer(
            config=strop.RLOOConfig(),
            policy=AutoModelForCausalLM.from_pretrained(models["model_id"]),
            ref_policy=AutoModelForCausalLM.from_pretrained(models["model_id"]),
            reward_model=models["reward_model_id"],
            train_dataset=rows_for("rloo", 2),
        )
    text = str(error.value)
    assert "args=" in text and "model=" in text and "ref_model=" in text


def test_online_dpo_with_a_judge_and_no_processing_class(models: dict[str, str]) -> None:
    judge = RuleJudge(lambda prompt, first, second: int(len(second) > len(first)))
    args = strop.OnlineDPOConfig(**QUICK, per_device_train_batch_size=4, max_new_tokens=6)
    given = {"args": args, "train_dataset": rows_for("online-dpo", 4)}
    train(strop.OnlineDPOTrainer(models["model_id"], judge=judge, **given))
    with pytest.raises(ConfigError, match="needs a reward"):
        strop.OnlineDPOTrainer(models["model_id"], **given)


def test_gkd_without_processing_class(models: dict[str, str]) -> None:
    args = strop.GKDConfig(**QUICK, max_new_tokens=6)
    rows = [{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}] * 2
    train(strop.GKDTrainer(models["small_model"], models["large_aligned_model"], args, train_dataset=rows))


def test_tokenizer_and_a_reference_by_id(models: dict[str, str]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(models["model_id"])
    model = AutoModelForCausalLM.from_pretrained(models["model_id"])
    given = {"args": strop.DPOConfig(**QUICK), "train_dataset": rows_for("dpo", 4), "tokenizer": tokenizer}
    trainer = train(strop.DPOTrainer(model, models["small_model"], **given))
    assert abs(trainer.state.log_history[0]["rewards/chosen"]) > 0.01  # another model than the policy
    with pytest.raises(ConfigError, match="both are given"):
        strop.DPOTrainer(model, processing_class=tokenizer, **given)


@pytest.mark.parametrize("name", ["ORPO", "CPO", "SFT", "KTO"])
def test_no_args_at_all(name: str, models: dict[str, str]) -> None:
    trainer = getattr(strop, f"{name}Trainer")(model=models["model_id"], train_dataset=rows_for(name.lower(), 2))
    train(trainer)
    assert trainer.args.output_dir == f"runs/{name.lower()}"


def test_a_small_batch_for_grpo_means_a_whole_group(models: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    args = strop.GRPOConfig(**QUICK, per_device_train_batch_size=2, max_completion_length=4)
    trainer = strop.GRPOTrainer(models["model_id"], letters_reward, args, rows_for("grpo", 2))
    assert "prompts used for each step: 1, with 8 completions" in capsys.readouterr().out
    train(trainer)


def test_plain_training_arguments(models: dict[str, str]) -> None:
    from transformers import TrainingArguments

    args = TrainingArguments(output_dir="plain", max_steps=1, per_device_train_batch_size=2, report_to="none")
    trainer = train(strop.SFTTrainer(models["model_id"], args=args, train_dataset=rows_for("sft", 2)))
    assert trainer.args.output_dir == "plain" and trainer.args.learning_rate == 5e-5


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"train_datset": []}, "Did you mean 'train_dataset'"),
        ({"data_collator": list}, "no collator"),
        ({"compute_loss_func": len}, "override loss"),
        ({"model_adapter_name": "a"}, r"Config\(model_adapter_name"),
    ],
    ids=str,
)
def test_arguments_that_cannot_be_used(argument: dict[str, Any], message: str, models: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=message):
        strop.DPOTrainer(models["model_id"], args=strop.DPOConfig(**QUICK), **argument)
