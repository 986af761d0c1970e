"""What scripts parse: model, adapter, quantisation, data; from words and from a YAML file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

import strop
from strop.errors import ConfigError
from strop.scripts.arguments import (
    DatasetMixtureConfig,
    ModelConfig,
    ScriptArguments,
    get_dataset,
    get_kbit_device_map,
    get_peft_config,
    get_quantization_config,
)
from strop.scripts.parser import TrlParser

ALL = (ScriptArguments, strop.GRPOConfig, ModelConfig, DatasetMixtureConfig)
QUIET = ["--output_dir", "runs/x", "--use_cpu", "true"]


def test_one_instance_of_each() -> None:
    words = [*QUIET, "--dataset_name", "d", "--beta", "0.2", "--use_peft", "--lora_target_modules", "all-linear"]
    script, args, model, mixture = TrlParser(ALL).parse_args_and_config(words)
    assert (script.dataset_name, args.beta, model.use_peft, mixture.datasets) == ("d", 0.2, True, [])
    assert model.lora_target_modules == "all-linear"


def test_trust_is_a_setting_of_the_config_that_the_model_shows() -> None:
    assert TrlParser(ALL).parse_args_and_config([*QUIET, "--trust_remote_code"])[2].trust_remote_code
    assert not TrlParser(ALL).parse_args_and_config(QUIET)[2].trust_remote_code


def test_other_names_of_settings_are_flags() -> None:
    _, args, _, _ = TrlParser(ALL).parse_args_and_config([*QUIET, "--max_new_tokens", "9", "--kl_coef", "0.3"])
    assert (args.max_completion_length, args.beta) == (9, 0.3)


def test_settings_that_strop_does_without_are_passed_over_or_refused() -> None:
    TrlParser(ALL).parse_args_and_config([*QUIET, "--vllm_tensor_parallel_size", "1", "--pad_to_multiple_of", "auto"])
    with pytest.raises(ConfigError, match="tensor-parallel-size"):
        TrlParser(ALL).parse_args_and_config([*QUIET, "--vllm_tensor_parallel_size", "2"])


def test_a_file_gives_defaults_and_the_words_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "run.yaml"
    monkeypatch.setenv("STROP_TEST_VARIABLE", "before")
    file.write_text(
        "env: {STROP_TEST_VARIABLE: 7}\noutput_dir: runs/x\nuse_cpu: true\nbeta: 0.5\nmax_new_tokens: 11\n"
        "dataset_name: d\nlearning_rate: 1.0e-4\ndatasets: [{path: json, split: train}]\n"
    )
    script, args, _, mixture = TrlParser(ALL).parse_args_and_config(["--config", str(file), "--beta", "0.1"])
    assert os.environ["STROP_TEST_VARIABLE"] == "7"
    assert (args.beta, args.max_completion_length, args.learning_rate) == (0.1, 11, 1e-4)
    assert script.dataset_name == "d" and mixture.datasets[0].path == "json"


def test_what_the_file_holds_in_vain_is_said_or_handed_back(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("output_dir: runs/x\nuse_cpu: true\nlearning_rat: 1\n")
    with pytest.raises(ConfigError, match=r"learning_rat.* Did you mean 'learning_rate'"):
        TrlParser(ALL).parse_args_and_config([f"--config={file}"])
    *_, unknown = TrlParser(ALL).parse_args_and_config(["--config", str(file)], return_remaining_strings=True)
    assert unknown == ["--learning_rat", "1"]
    with pytest.raises(ConfigError, match="No such file"):
        TrlParser(ALL).parse_args_and_config(["--config", str(tmp_path / "none.yaml")])
    file.write_text("beta: [0.1\n")
    with pytest.raises(ConfigError, match="line 2: not valid YAML"):
        TrlParser(ALL).parse_args_and_config(["--config", str(file)])


def test_adapter_and_quantisation_follow_the_settings() -> None:
    assert get_peft_config(ModelConfig()) is None and get_quantization_config(ModelConfig()) is None
    made = get_peft_config(
        ModelConfig(use_peft=True, lora_r=4, lora_target_modules=["q_proj", "v_proj"], use_dora=True)
    )
    assert (made.r, set(made.target_modules), made.use_dora, made.lora_alpha) == (4, {"q_proj", "v_proj"}, True, 32)
    four = get_quantization_config(ModelConfig(load_in_4bit=True, dtype="bfloat16"))
    assert (
        four.load_in_4bit
        and four.bnb_4bit_quant_type == "nf4"
        and str(four.bnb_4bit_compute_dtype).endswith("bfloat16")
    )
    assert get_quantization_config(ModelConfig(load_in_8bit=True)).load_in_8bit
    with pytest.raises(ConfigError, match="exclude each other"):
        ModelConfig(load_in_8bit=True, load_in_4bit=True)
    assert get_kbit_device_map() is None or set(get_kbit_device_map() or {}) == {""}


def mixture(tmp_path: Path, *fractions: float | None, **values: Any) -> Any:
    parts = []
    for index, (rows, fraction) in enumerate(zip((10, 4), fractions, strict=True)):
        file = tmp_path / f"{index}.jsonl"
        file.write_text("\n".join(json.dumps({"text": f"{index} {row}", "other": 1}) for row in range(rows)))
        parts.append({"path": "json", "data_files": str(file), "columns": ["text"], "fraction": fraction})
    return get_dataset(DatasetMixtureConfig(datasets=parts, **values))


def test_a_mixture_is_its_parts_one_after_the_other(tmp_path: Path) -> None:
    rows = mixture(tmp_path, None, None)["train"]
    assert len(rows) == 14 and rows.column_names == ["text"] and rows[10]["text"] == "1 0"


def test_fractions_are_kept_without_showing_a_row_twice(tmp_path: Path) -> None:
    rows = mixture(tmp_path, 3, 1, test_split_size=0.25)
    texts = sorted([*rows["train"]["text"], *rows["test"]["text"]])
    assert len(rows["test"]) == 4 and [sum(t.startswith(part) for t in texts) for part in "01"] == [10, 3]
    with pytest.raises(ConfigError, match="for all data sets or for none"):
        mixture(tmp_path, 0.5, None)
    with pytest.raises(ConfigError, match="stream"):
        mixture(tmp_path, 0.5, 0.5, streaming=True)
