"""Settings under names of earlier releases, and settings that trainers once took themselves."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser, TrainingArguments

import strop
from strop.errors import ConfigError
from strop.methods.registry import METHODS
from strop.scripts.arguments import ModelConfig, ScriptArguments
from strop.scripts.parser import SettingsParser, TrlParser
from strop.settings import earlier
from strop.testing.cases import rows_for

PLAIN = {"max_steps": 1, "report_to": "none", "use_cpu": True}


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.verb)
def test_every_earlier_name_means_a_setting_or_says_what_to_do(method: Any) -> None:
    config = method.config()
    assert all(hasattr(config(), target) for target in config.aliases.values())
    fields = {f.name for f in dataclasses.fields(config)}
    assert not fields & {*config.removed, *config.aliases}
    for name, values in config.neutral.items():
        for value in values if name in config.removed else ():
            config(**{name: value})
    for name, text in config.removed.items():
        with pytest.raises(ConfigError, match="is not a field") as error:
            config(**{name: object()})
        assert text in str(error.value)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("PPOConfig", {"local_rollout_forward_batch_size": 1}, {"max_slots": 1}),
        (
            "SFTConfig",
            {"no_cuda": True, "per_gpu_train_batch_size": 3},
            {"use_cpu": True, "per_device_train_batch_size": 3},
        ),
        (
            "DPOConfig",
            {"push_to_hub_model_id": "me/it", "log_with": "none"},
            {"hub_model_id": "me/it", "report_to": []},
        ),
        ("PPOConfig", {"ppo_epochs": 2, "init_kl_coef": 0.3}, {"num_iterations": 2, "beta": 0.3}),
        (
            "RLOOConfig",
            {"num_ppo_epochs": 2, "cliprange": 0.3, "stop_token": "eos"},
            {"num_iterations": 2, "epsilon": 0.3},
        ),
        ("GRPOConfig", {"generation_kwargs": {"pad_token_id": 3, "min_length": -1, "top_k": 5}}, {"top_k": 5}),
    ],
    ids=str,
)
def test_earlier_names(name: str, old: dict[str, Any], new: dict[str, Any]) -> None:
    args = getattr(strop, name)(**old)
    assert {field: getattr(args, field) for field in new} == new


def test_all_that_is_gone_is_said_together() -> None:
    with pytest.raises(ConfigError) as error:
        strop.PPOConfig(model_name="gpt2", batch_size=256, mini_batch_size=16, adap_kl_ctrl=True, steps=20000)
    assert len(str(error.value).splitlines()) == 6


def test_an_sft_script_of_the_year_2023(models: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    training_arguments = TrainingArguments(
        output_dir="out", per_device_train_batch_size=2, max_steps=1, learning_rate=2e-4, report_to="none", use_cpu=True
    )
    rows = [{"content": "the good ant"}, {"content": "the bad bee eats"}]
    trainer = strop.SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(models["model_id"]),
        train_dataset=rows,
        dataset_text_field="content",
        max_seq_length=6,
        tokenizer=AutoTokenizer.from_pretrained(models["model_id"]),
        args=training_arguments,
        packing=True,
        packing_strategy="wrapped",
        dataset_num_proc=None,
        num_of_sequences=1024,
        neftune_noise_alpha=5.0,
    )
    args = trainer.args
    assert (args.max_length, args.dataset_text_field, args.packing, args.learning_rate) == (6, "content", True, 2e-4)
    assert args.neftune_noise_alpha == 5.0
    assert max(map(len, trainer.train_dataset["input_ids"])) == 6
    assert trainer.tokenizer is trainer.processing_class
    assert repr(trainer.train_dataset).startswith("PackedDataset(columns=['input_ids'")
    trainer.train()


def test_a_dpo_script_of_the_year_2023(models: dict[str, str]) -> None:
    model = AutoModelForCausalLM.from_pretrained(models["model_id"])
    given: dict[str, Any] = {"train_dataset": rows_for("dpo", 2), "beta": 0.3, "max_prompt_length": 4}
    for args in (None, TrainingArguments(**PLAIN, output_dir="out")):
        trainer = strop.DPOTrainer(model, args=args, **given, label_pad_token_id=-100, max_target_length=9)
        assert (trainer.args.beta, trainer.args.max_prompt_length, trainer.args.max_completion_length) == (0.3, 4, 9)
    with pytest.raises(ConfigError, match=r"beta is a setting: args=DPOConfig\(beta=0.3\)") as error:
        strop.DPOTrainer(model, args=strop.DPOConfig(**PLAIN), **given)
    assert "max_prompt_length is a setting" in str(error.value)
    with pytest.raises(ConfigError, match=r"is not a field of DPOConfig\. Use CPOTrainer"):
        strop.DPOTrainer(model, **given, reference_free=True)


def test_a_trainer_that_needs_its_settings_early_takes_them_too(models: dict[str, str]) -> None:
    model = AutoModelForCausalLM.from_pretrained(models["model_id"])
    given: dict[str, Any] = {"train_dataset": rows_for("xpo", 2), "beta": 0.3}
    for args in (None, TrainingArguments(**PLAIN, output_dir="out")):
        assert strop.XPOTrainer(model, args=args, **given).args.beta == 0.3
    with pytest.raises(ConfigError, match=r"beta is a setting: args=XPOConfig\(beta=0.3\)"):
        strop.XPOTrainer(model, args=strop.XPOConfig(**PLAIN), **given)


@pytest.mark.parametrize("suffix", ["yaml", "json", "dict"])
def test_files_of_settings_know_every_name(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"settings.{suffix}"
    values = {"max_seq_length": 9, "output_dir": "o", "no_cuda": True, "dataset_name": "d", "save_safetensors": True}
    parser = SettingsParser((ScriptArguments, strop.SFTConfig, ModelConfig))
    assert isinstance(parser, HfArgumentParser)
    if suffix == "dict":
        script, args, _ = parser.parse_dict(values)
    else:
        file.write_text(str(values).replace("'", '"').replace("True", "true"))  # which is both
        script, args, _ = getattr(parser, f"parse_{suffix}_file")(file)
    assert (script.dataset_name, args.max_length, args.use_cpu) == ("d", 9, True)
    with pytest.raises(ConfigError, match=r"(?s)learning_rat=1.*Did you mean 'learning_rate'.*nothing_like_it=2"):
        parser.parse_dict({"learning_rat": 1, "nothing_like_it": 2})
    assert len(parser.parse_dict({"nothing_like_it": 2}, allow_extra_keys=True)) == 3


def test_flags_of_switches_need_no_value() -> None:
    words = ["--output_dir", "o", "--no_cuda", "--max_seq_length", "9"]
    assert TrlParser(strop.SFTConfig).parse_args_and_config(words)[0].use_cpu


def test_tables_do_not_contradict_each_other() -> None:
    for aliases, removed in ((earlier.ALIASES, earlier.REMOVED), (earlier.PPO_ALIASES, earlier.PPO_REMOVED)):
        assert not aliases.keys() & removed.keys()
