"""`generate_during_eval`: completions of evaluation prompts, the same ones as long as the weights are the same."""

from __future__ import annotations

import json

import pytest
import torch

from strop import SFTTrainer
from strop.errors import ConfigError
from strop.testing.cases import make_trainer, rows_for


def samples(folder):
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("verb", ["sft", "dpo", "grpo", "ppo", "gkd"])
def test_samples_are_kept_and_shown(verb, tmp_path, capsys):
    trainer = make_trainer(
        verb,
        tmp_path,
        eval_rows=rows_for(verb, 3),
        generate_during_eval=True,
        max_completion_length=5,
        dtype=torch.float32,
    )
    trainer.evaluate()
    trainer.evaluate()
    rows = samples(tmp_path)
    assert len(rows) == 6 and rows[:3] == rows[3:] and all(row["evaluation"] for row in rows)
    prompts = [trainer.processing_class.decode(e.prompt_ids) for e in (trainer.eval_dataset[i] for i in range(3))]
    assert [row["prompt"] for row in rows[:3]] == prompts and prompts[0].split()[0] in capsys.readouterr().out


def test_texts_without_a_prompt_and_runs_without_rows_have_no_samples(tmp_path):
    trainer = make_trainer("sft", tmp_path, eval_rows=[{"text": "the good ant"}], generate_during_eval=True)
    trainer.evaluate()
    assert not (tmp_path / "samples.jsonl").exists()


def test_a_trainer_that_samples_nothing_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(SFTTrainer, "evaluation_samples", None)
    with pytest.raises(ConfigError, match="SFTTrainer samples nothing"):
        make_trainer("sft", tmp_path, generate_during_eval=True)
