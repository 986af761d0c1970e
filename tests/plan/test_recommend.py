"""The decision tree: every kind of rows has an answer, what is at hand changes it, and the command runs as printed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from strop.cli import main
from strop.data import DatasetKind
from strop.errors import ConfigError
from strop.methods.registry import BY_VERB, Advice, Method
from strop.plan.recommend import HAVE, recommend

PAIR = {"prompt": "Say hi.", "chosen": "Hi!", "rejected": "No."}


@pytest.mark.parametrize(
    ("kind", "have", "first"),
    [
        ("language_modeling", (), "sft"),
        ("prompt_completion", (), "sft"),
        ("prompt_completion", ("teacher",), "gkd"),
        ("preference", (), "dpo"),
        ("unpaired_preference", (), "kto"),
        ("stepwise", ("steps",), "prm"),
        ("prompt_only", ("verifier",), "grpo"),
        ("prompt_only", ("reward",), "grpo"),
        ("prompt_only", ("judge",), "online-dpo"),
        ("prompt_only", ("teacher",), "gkd"),
    ],
)
def test_rows_and_answers_decide(kind: str, have: tuple[str, ...], first: str) -> None:
    assert recommend(kind, have).first.verb == first


def test_every_kind_and_every_answer_names_methods_that_exist() -> None:
    for kind in DatasetKind:
        for have in [(), *((name,) for name in HAVE), tuple(HAVE)]:
            try:
                found = recommend(kind, have)
            except ConfigError:
                assert kind is DatasetKind.PROMPT_ONLY and not set(have) & {"reward", "verifier", "judge", "teacher"}
                continue
            for choice in (found.first, found.runner_up):
                assert choice is None or choice.verb in BY_VERB
            assert found.runner_up is None or found.runner_up.verb != found.first.verb


def test_text_has_no_completion_that_a_teacher_could_look_at() -> None:
    assert recommend("language_modeling", ["teacher"]).first.verb == "gkd"
    assert recommend("language_modeling", ["teacher"], form="text").first.verb == "sft"


def test_a_method_of_another_package_says_in_its_class_when_it_is_the_one(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = SimpleNamespace(advice=(Advice(("preference",), 0, "It is mine."),), dataset_kind="preference")
    monkeypatch.setitem(sys.modules, "a_package", SimpleNamespace(MineTrainer=trainer))
    monkeypatch.setitem(BY_VERB, "mine", Method("mine", "Mine", "", home="a_package"))
    found = recommend("preference")
    assert (found.first.verb, found.first.reason) == ("mine", "It is mine.")
    assert not any("nothing more" in line for line in found.others)


def test_a_small_card_changes_the_settings_and_not_the_method(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With an adapter, which a small card gets, the reference takes no memory."""
    file = rows_file(tmp_path, PAIR)
    for gpu, said in (("80GB", ""), ("24GB", "lora: true"), ("8GB", "load_in_4bit: true")):
        assert main(["recommend", file, "--gpu", gpu]) == 0
        shown = capsys.readouterr().out
        assert "Take dpo." in shown and said in shown and ("lora" in shown) == bool(said)


def test_columns_of_other_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the error about unknown columns says to do is a flag here too, and stands in the config."""
    file = rows_file(tmp_path, {"question": "2+2?", "better": "4", "worse": "5"})
    assert main(["recommend", file]) == 2 and "--columns" in capsys.readouterr().err
    columns = "prompt=question,chosen=better,rejected=worse"
    assert main(["recommend", file, "--columns", columns]) == 0
    shown = capsys.readouterr().out
    assert "Take dpo." in shown and f"columns: {columns}" in shown


def test_prompts_alone_ask_what_is_at_hand() -> None:
    with pytest.raises(ConfigError, match="--have verifier"):
        recommend("prompt_only")


def test_unknown_answers_are_named() -> None:
    with pytest.raises(ConfigError, match="'teacher'"):
        recommend("prompt_only", ["techer"])


def rows_file(folder: Path, row: dict[str, Any]) -> str:
    path = folder / "pairs.jsonl"
    path.write_text((json.dumps(row) + "\n") * 4)
    return str(path)


def test_what_the_command_prints_is_a_config_that_its_verb_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, config = rows_file(tmp_path, PAIR), tmp_path / "run.yaml"
    assert main(["recommend", file, "--gpu", "24GB", "--model", "some/model", "--write", str(config)]) == 0
    printed = capsys.readouterr().out
    assert max(len(line) for line in printed.splitlines() if str(tmp_path) not in line) <= 80
    settings = yaml.safe_load(config.read_text())
    assert settings["dataset"] == file and settings["model"] == "some/model" and settings["lora"] is True
    verb = printed.split("Run it: strop ")[1].split()[0]
    seen: list[Any] = []
    trainer = SimpleNamespace(run_directory=SimpleNamespace(command=None))
    made = lambda method, args, own: seen.append((method.verb, args, own)) or trainer  # noqa: E731
    monkeypatch.setattr("strop.cli.train.make_trainer", made)
    monkeypatch.setattr("strop.cli.train.train_and_save", lambda trainer, own: 0)
    assert main([verb, "--config", str(config)]) == 0
    assert seen[0][0] == verb and seen[0][2]["dataset"] == file


def test_a_file_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("mine: true\n")
    assert main(["recommend", rows_file(tmp_path, PAIR), "--write", str(tmp_path / "run.yaml")]) == 2
    assert (tmp_path / "run.yaml").read_text() == "mine: true\n"


@pytest.mark.parametrize("gpu", ["much", "0", "-3GB"])
def test_memory_that_is_none_is_refused(gpu: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recommend", rows_file(tmp_path, PAIR), f"--gpu={gpu}"]) == 2
    assert "24GB" in capsys.readouterr().err
