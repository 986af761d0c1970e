"""A script that takes names which are not here is told of all of them at the first, with what to use."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import strop
from strop.cli import main
from strop.errors import ConfigError, StropError
from strop.scripts.alias import look_up
from strop.scripts.missing_names import names_taken

SCRIPT = """
import {package}
from {package} import DPOTrainer, SFTConfig
try:
    from {package} import BestOfNSampler
except ImportError:
    BestOfNSampler = None
from {package}{core} import LengthSampler, DPOTrainr
from {package} import AutoModelForCausalLMWithValueHead as Model, PPOConfig
"""


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return tmp_path / "old_script.py"


def check(text: str) -> None:
    lines = text.splitlines()
    assert lines[0] == "old_script.py imports names that strop does not have:" and len(lines) == 4, text
    assert "'LengthSampler' of TRL has no namesake in strop: max_completion_length bounds" in lines[1]
    assert "Did you mean 'DPOTrainer'?" in lines[2] and "value_model=" in lines[3]


def test_of_strop(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script.write_text(SCRIPT.format(package="strop", core=""))
    monkeypatch.delitem(sys.modules, "old_script", raising=False)
    with pytest.raises(ImportError) as error:
        __import__("old_script")
    assert isinstance(error.value, StropError)
    check(str(error.value))


@pytest.mark.usefixtures("asked")
def test_of_trl_without_a_traceback(script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script.write_text(SCRIPT.format(package="trl", core=".core"))
    assert main(["run", "old_script.py"]) == 2
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    check(shown.removeprefix("strop run: "))


@pytest.mark.usefixtures("asked")
def test_whether_a_name_is_there_can_be_asked() -> None:
    import trl

    assert not hasattr(trl, "AutoModelForCausalLMWithValueHead") and hasattr(trl, "SFTTrainer")
    assert getattr(trl, "BestOfNSampler", None) is None
    with pytest.raises(AttributeError, match="value_model="):
        _ = trl.AutoModelForCausalLMWithValueHead


@pytest.mark.usefixtures("asked")
def test_modules_of_a_trainer_are_modules() -> None:
    from trl.trainer import dpo_trainer, sft_config  # type: ignore[import-not-found]

    assert dpo_trainer.DPOTrainer is strop.DPOTrainer and issubclass(sft_config.SFTConfig, strop.SFTConfig)


def test_what_counts_as_taken() -> None:
    source = (
        "from trl import A, B as C\nfrom trl.x.y import A, D\nfrom trlx import E\nfrom . import F\nfrom trl import *\n"
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from trl import G\n"
        "def later():\n    from trl import H\n"
    )
    assert names_taken(source, "trl") == ["A", "B", "D", "H"]
    assert names_taken("%pip install trl\nfrom trl import A", "trl") == []


@pytest.mark.parametrize("name", ["HfPairwiseJudge", "OpenAIPairwiseJudge", "PairRMJudge"])
def test_a_judge_that_no_option_asks_for_stops_nothing(name: str) -> None:
    judge = look_up(name)
    with pytest.raises(ConfigError, match=f"'{name}' of TRL has no namesake in strop: use "):
        judge("a model")
