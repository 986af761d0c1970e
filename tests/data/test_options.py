"""Settings: every wrong one in one error; templates from files and folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from strop.data import TokenizeOptions
from strop.errors import ConfigError


def test_all_wrong_settings_come_in_one_error() -> None:
    with pytest.raises(ConfigError) as caught:
        TokenizeOptions(truncation_mode="keep_strat", max_length=0, max_prompt_length=True, step_separator="")
    message = str(caught.value)
    assert "Did you mean 'keep_start'?" in message and "max_length is 0" in message
    assert "max_prompt_length is True" in message and "step_separator is empty" in message


@pytest.mark.parametrize("field", ["boundary", "label_format"])
def test_choices(field: str) -> None:
    with pytest.raises(ConfigError, match=f"{field} is 'x'; choose one of"):
        TokenizeOptions(**{field: "x"})


def test_one_template_only() -> None:
    with pytest.raises(ConfigError, match="both set"):
        TokenizeOptions(chat_template="a", chat_template_path="b")


def test_templates_from_files(tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text("T1")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps({"chat_template": "T2"}))
    assert TokenizeOptions(chat_template_path=str(tmp_path / "t.jinja")).template() == "T1"
    assert TokenizeOptions(chat_template_path=str(tmp_path / "model")).template() == "T2"
    (tmp_path / "model" / "chat_template.jinja").write_text("T3")
    assert TokenizeOptions(chat_template_path=str(tmp_path / "model")).template() == "T3"
    assert TokenizeOptions(chat_template="T4").template() == "T4" and TokenizeOptions().template() is None
    for missing in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(ConfigError, match="no chat template in"):
            TokenizeOptions(chat_template_path=str(missing)).template()
    (tmp_path / "model2").mkdir()
    (tmp_path / "model2" / "tokenizer_config.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        TokenizeOptions(chat_template_path=str(tmp_path / "model2")).template()
