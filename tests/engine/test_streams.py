"""Rows without an end: what is refused when the trainer is made, and what an evaluation reads of them."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import IterableDataset

from strop.engine import windows
from strop.errors import ConfigError
from strop.testing.cases import make_trainer, rows_for

ONLINE = {"per_device_train_batch_size": 4, "num_generations": 2, "max_completion_length": 2}


def endless(verb: str) -> IterableDataset:
    rows = rows_for(verb, 4)
    return IterableDataset.from_generator(lambda: (rows[i % 4] for i in itertools.count()))


def trainer_of(verb: str, folder: Path, **settings: Any) -> Any:
    return make_trainer(verb, folder, dtype=torch.float32, per_device_eval_batch_size=2, **settings)


@pytest.mark.parametrize("verb", ["sft", "dpo", "grpo"])
def test_an_evaluation_of_an_endless_stream_ends_where_it_is_told(verb: str, tmp_path: Path) -> None:
    online = ONLINE if verb == "grpo" else {}
    trainer = trainer_of(verb, tmp_path, eval_rows=endless(verb), max_eval_rows=3, **online)
    assert [len(window) for window in trainer.get_eval_dataloader()] == [2, 1]
    assert "eval_loss" in trainer.evaluate()


def test_a_set_is_bounded_too_and_predictions_are_not(tmp_path: Path) -> None:
    trainer = trainer_of("sft", tmp_path, eval_rows=rows_for("sft", 5), max_eval_rows=3)
    assert sum(map(len, trainer.get_eval_dataloader())) == 3
    assert sum(map(len, trainer.get_test_dataloader(rows_for("sft", 5)))) == 5


def test_a_stream_that_goes_on_and_on_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(windows, "LONG_EVALUATION", 3)
    trainer = trainer_of("sft", tmp_path, eval_rows=endless("sft"))
    assert sum(map(len, itertools.islice(trainer.get_eval_dataloader(), 3))) == 6
    said = capsys.readouterr().out
    assert said.count("max_eval_rows") == 1 and "has read 3 rows" in said


def test_workers_for_a_stream_are_refused_when_the_trainer_is_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="dataloader_num_workers=2: this process reads it"):
        trainer_of("sft", tmp_path, rows=endless("sft"), max_steps=1, dataloader_num_workers=2)
