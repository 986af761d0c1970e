"""What a training says and leaves out; the evaluation at its end is made once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from strop.cli import main
from strop.errors import ConfigError
from strop.plan.memory import parts_of
from strop.testing.cases import settings
from strop.testing.tiny import tiny_model
from strop.testing.tokenizers import toy_tokenizer


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A command line that trains for a moment."""
    folder = tmp_path_factory.mktemp("given")
    tokenizer = toy_tokenizer("plain")
    tiny_model("llama", vocab_size=len(tokenizer)).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = [{"prompt": "owl", "completion": f" ibis {i}"} for i in range(4)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = str(folder / "rows.jsonl")
    return ["sft", "--model", str(folder / "model"), "--dataset", data, "--eval_dataset", data, "--use_cpu",
            "--max_steps", "1", "--save_strategy", "no", "--report_to", "none"]  # fmt: skip


def test_the_last_evaluation_is_made_once(words: list[str], tmp_path: Path, monkeypatch: Any, capfd: Any) -> None:
    asked = []
    from strop.engine.trainer import BaseTrainer

    evaluate = BaseTrainer.evaluate
    monkeypatch.setattr(BaseTrainer, "evaluate", lambda self, *a, **k: (asked.append(1), evaluate(self, *a, **k))[1])
    assert main([*words, "--output_dir", str(tmp_path), "--eval_steps", "1"]) == 0
    assert len(asked) == 2, "before, and at the last step"
    assert "before" in capfd.readouterr().out


def test_a_quiet_run_says_where_its_model_is(words: list[str], tmp_path: Path, capfd: Any) -> None:
    assert main([*words, "--output_dir", str(tmp_path / "a"), "--quiet"]) == 0
    said = [line for line in capfd.readouterr().out.splitlines() if not line.startswith("Warning")]
    assert said == [str(tmp_path / "a")]


def test_a_tracker_that_is_not_installed_is_a_sentence(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("strop.settings.config.get_available_reporting_integrations", lambda: ["tensorboard"])
    with pytest.raises(ConfigError, match=r"report_to='comet_ml' needs a package .* pip install comet-ml"):
        settings("sft", tmp_path, report_to=["tensorboard", "comet_ml"])


def test_a_run_whose_rehearsal_stands_beside_the_plan_goes_on(words: list[str], tmp_path: Path, capfd: Any) -> None:
    parts_of.cache_clear()  # as in a process of its own: what it makes must leave the state of the run alone
    assert main([*words, "--output_dir", str(tmp_path), "--rehearsal", "true"]) == 0
    assert "(plan: " in capfd.readouterr().out
