"""The layout that a model was found to take is held against the first real rows of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from strop.errors import ConfigError
from strop.testing.cases import make_trainer, rows_for
from strop.testing.tiny import tiny_model


def deaf_from(length: int) -> Any:
    """A model that counts positions above `length` along the row, as no config says: no small example shows it."""
    model = tiny_model("llama", vocab_size=288)
    rotary = model.model.rotary_emb
    forward = rotary.forward
    counted = lambda p: torch.where(p < length, p, torch.arange(p.shape[1])[None].expand_as(p))  # noqa: E731
    rotary.forward = lambda x, position_ids: forward(x, counted(position_ids))
    return model


def test_rows_that_leak_are_padded_from_the_first_batch_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = make_trainer("dpo", tmp_path, model=deaf_from(10), rows=rows_for("dpo", 4), max_steps=1)
    assert trainer.layout.name == "tree"
    trainer.train()
    assert "Rows are padded from now on" in capsys.readouterr().out
    assert trainer.build([trainer.train_dataset[0]]).layout == "padded"
    assert trainer.state.log_history[0]["loss"] == pytest.approx(0.6931471805599453, abs=1e-6)


def test_a_layout_that_was_asked_for_is_refused(tmp_path: Path) -> None:
    trainer = make_trainer("dpo", tmp_path, model=deaf_from(10), rows=rows_for("dpo", 4), max_steps=1, layout="tree")
    with pytest.raises(ConfigError, match=r"layout='tree'.*relative difference"):
        trainer.train()
