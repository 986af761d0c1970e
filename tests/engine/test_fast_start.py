"""The first step does not wait for the set to be tokenised, and a second run does not tokenise at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from strop.data.prepare import EAGER_ROWS
from strop.testing.cases import make_trainer, rows_for


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """All texts that a tokenizer was asked to encode."""
    texts: list[str] = []
    original = PreTrainedTokenizerFast.__call__

    def counted(self: Any, text: Any = None, *args: Any, **kwargs: Any) -> Any:
        texts.extend(text if isinstance(text, list) else [text])
        return original(self, text, *args, **kwargs)

    monkeypatch.setattr(PreTrainedTokenizerFast, "__call__", counted)
    return texts


def test_the_first_step_of_a_large_set(tmp_path: Path, encoded: list[str]) -> None:
    rows = [{"text": f"the ant {number} saw the bee"} for number in range(EAGER_ROWS + 1)]
    trainer = make_trainer("sft", tmp_path, rows=rows, max_steps=1, dataset_cache_dir=str(tmp_path / "cache"))
    assert len(encoded) < 20
    trainer.train()
    assert len(encoded) < 60 and trainer.reports["train"].tokenized < 20


@pytest.mark.parametrize(
    "verb", ["dpo", *(pytest.param(verb, marks=pytest.mark.slow) for verb in ("sft", "kto", "prm"))]
)
def test_a_second_run_tokenises_nothing(verb: str, tmp_path: Path, encoded: list[str]) -> None:
    rows = rows_for(verb, 6)

    def run(data: list[Any], name: str) -> tuple[int, float]:
        encoded.clear()
        folder = tmp_path / name
        trainer = make_trainer(verb, folder, rows=data, max_steps=1, dataset_cache_dir=str(tmp_path / "cache"))
        trainer.train()
        return len(encoded), trainer.state.log_history[0]["grad_norm"]

    first, norm = run(rows, "first")
    again, same_norm = run(rows, "again")
    edited, other_norm = run([{**rows[0], "prompt": "another ant"}, *rows[1:]], "edited")
    assert first > 0 and again == 0 and same_norm == norm
    assert edited > 0 and other_norm != norm
