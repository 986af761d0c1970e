"""Words on the command line and names in a YAML file, as people write them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from transformers.trainer_utils import SaveStrategy

from strop.cli import main, vllm_serve
from strop.cli.flags import Flag, fit, help_page, parse
from strop.cli.train import NAME_ALIASES, flag_groups, help_for
from strop.errors import ConfigError, did_you_mean
from strop.methods.registry import BY_VERB

MODULES = Flag("lora_target_modules", list[str] | str)
FLAGS = {
    "lora_target_modules": MODULES, "reward_weights": Flag("reward_weights", list[float] | None),
    "learning_rate": Flag("learning_rate", float), "lora": Flag("lora", bool), "dataset": Flag("dataset", str),
}  # fmt: skip


@pytest.mark.parametrize("words", [["q_proj,v_proj"], ["q_proj", "v_proj"], ["[q_proj, v_proj]"]], ids=len)
def test_lists_as_people_write_them(words: list[str]) -> None:
    found = parse(["--lora_target_modules", *words, "--lora"], FLAGS)
    assert found == {"lora_target_modules": ["q_proj", "v_proj"], "lora": True}


def test_numbers_in_lists_and_single_values() -> None:
    assert parse(["--reward_weights", "1", "0.5"], FLAGS) == {"reward_weights": [1.0, 0.5]}
    assert parse(["--reward_weights=1,0.5"], FLAGS) == {"reward_weights": [1.0, 0.5]}
    assert fit("all-linear", MODULES) == "all-linear"
    with pytest.raises(ConfigError, match="stands alone"):
        parse(["--learning_rate", "1", "2"], FLAGS)


@pytest.mark.parametrize(("said", "meant"), [("lr", "learning_rate"), ("data", "dataset")])
def test_what_people_call_a_setting(said: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"--{said} is not a flag. Did you mean '{meant}'"):
        parse([f"--{said}", "1"], FLAGS)
    assert did_you_mean("epochs", ["num_train_epochs", "eval_steps"]) == " Did you mean 'num_train_epochs'?"
    assert did_you_mean("lr", ["beta"]) == ""


def test_the_file_takes_every_name_that_a_flag_takes(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("dataset_name: rows\nuse_peft: true\nmethod: dpo\n")
    assert parse(["--config", str(file)], FLAGS, NAME_ALIASES, "dpo") == {"dataset": "rows", "lora": True}
    with pytest.raises(ConfigError, match="of a run of 'dpo', and this is 'kto'"):
        parse(["--config", str(file)], FLAGS, NAME_ALIASES, "kto")


def test_other_names_of_a_setting_are_suggested_and_never_given_beside_it(tmp_path: Path) -> None:
    names = {"lr_rate": "learning_rate", "dataset_name": "dataset"}
    with pytest.raises(ConfigError, match=r"--lr_rat is not a flag\. Did you mean 'lr_rate'"):
        parse(["--lr_rat", "1"], FLAGS, names)
    with pytest.raises(ConfigError, match="--learning-rate and --lr_rate are one setting, and both are given"):
        parse(["--lr_rate", "1", "--learning-rate", "2"], FLAGS, names)
    with pytest.raises(ConfigError, match="--lr_rate is given twice"):
        parse(["--lr_rate", "1", "--lr_rate", "2"], FLAGS, names)
    file = tmp_path / "run.yaml"
    file.write_text("lr_rate: 1\nlearning_rate: 2\ndatasetname: rows\n")
    with pytest.raises(ConfigError) as error:
        parse(["--config", str(file)], FLAGS, names)
    assert "'lr_rate' and 'learning_rate' in the config file are one setting; keep one" in str(error.value)
    assert "'datasetname' in the config file is not a setting. Did you mean 'dataset_name'" in str(error.value)
    file.write_text("learning_rate: 2\n")
    assert parse(["--config", str(file), "--lr_rate", "1"], FLAGS, names) == {"learning_rate": 1.0}


@pytest.mark.parametrize("verb", ["sft", "grpo", "gkd"])
def test_help_shows_what_is_used_first_and_the_rest_when_asked(verb: str) -> None:
    method = BY_VERB[verb]
    short, whole, lora = (help_for(method, topic) for topic in ("", "all", "lora"))
    assert short.count("\n  --") <= 27 and "--learning_rate" in short and "--dataloader_drop_last" not in short
    assert whole.count("\n  --") == sum(map(len, flag_groups(method).values())) and "%%" not in whole
    assert "--lora_alpha" in lora and "--learning_rate" not in lora
    assert "--warmup_steps" in help_for(method, "warmup")
    assert "Did you mean 'learning_rate'" in help_for(method, "learnig_rate")


def test_a_flag_in_a_help_page_is_not_broken_at_its_hyphens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    lines = help_page(vllm_serve.TITLE, {"flags": vllm_serve.FLAGS}).splitlines()
    assert any("--tensor-parallel-size" in line for line in lines) and max(map(len, lines)) <= 60


def test_a_file_that_is_not_there_names_the_one_beside(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "train.jsonl").write_text("{}\n")
    assert main(["sft", "--model", "m", "--dataset", str(tmp_path / "trian.jsonl")]) == 2
    assert f"Did you mean '{tmp_path / 'train.jsonl'}'" in capsys.readouterr().err


def test_a_closed_pipe_is_no_traceback() -> None:
    command = f"{sys.executable} -m strop --help | true"
    run = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert run.stderr == ""


def test_a_run_goes_again_from_its_own_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from strop.testing.tiny import tiny_model
    from strop.testing.tokenizers import toy_tokenizer

    monkeypatch.chdir(tmp_path)
    tokenizer = toy_tokenizer("plain")
    tiny_model("llama", vocab_size=len(tokenizer)).save_pretrained("model")
    tokenizer.save_pretrained("model")
    Path("rows.jsonl").write_text('{"text": "the good ant"}\n' * 4)
    words = ["--max_steps", "1", "--use_cpu", "--report_to", "none", "--save_strategy", "no", "--lora", "--lora_r", "4"]
    eos = ["--eos_token", tokenizer.eos_token]
    assert main(["sft", "--model", "model", "--dataset", "rows.jsonl", "--output_dir", "a", *words, *eos]) == 0
    written: dict[str, Any] = yaml.safe_load(Path("a/config.yaml").read_text())
    assert (written["model"], written["dataset"], written["lora_r"]) == ("model", "rows.jsonl", 4)
    assert written["eos_token"] == tokenizer.eos_token
    assert main(["sft", "--config", "a/config.yaml", "--output_dir", "b"]) == 0
    again = yaml.safe_load(Path("b/config.yaml").read_text())
    assert {**again, "output_dir": "a"} == written


@pytest.mark.parametrize("hint", [SaveStrategy, SaveStrategy | str, str | None, Literal["no", "steps"]])
@pytest.mark.parametrize("raw", ["no", False], ids=["a flag", "a line of YAML"])
def test_no_is_a_word_where_a_name_is_meant(hint: Any, raw: Any) -> None:
    """YAML reads a bare `no` as false, and a parser of transformers leaves an enumeration in place of its text."""
    assert fit(raw, Flag("save_strategy", hint)) == "no"
    assert fit(raw, Flag("do_eval", bool)) is False


@pytest.mark.parametrize("words", [["plan", "dpo", "--model"], ["report"], ["generate", "--prompt", "hi", "--model"]])
def test_a_folder_that_is_not_there_names_the_one_beside(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("smollm2").mkdir()
    assert main([*words, "smolm2"]) == 2
    assert "Did you mean 'smollm2'" in capsys.readouterr().err
