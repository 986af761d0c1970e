"""What rows of a micro-batch begin with alike is computed once in every method, and the log says how much that is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from strop.testing.cases import examples_of, make_trainer, rows_for
from strop.testing.law_checks import begun_alike


def trained(folder: Path, verb: str = "dpo", **settings: Any) -> Any:
    trainer = make_trainer(verb, folder, rows=rows_for(verb, 4), per_device_train_batch_size=4, max_steps=1, **settings)
    trainer.train_dataset = [begun_alike(example) for example in examples_of(trainer)]
    return trainer


@pytest.mark.parametrize("verb", ["dpo", "sft"])
def test_the_log_says_how_many_tokens_are_computed(verb: str, tmp_path: Path) -> None:
    logged = {}
    for layout in ("auto", "packed", "padded"):
        trainer = trained(tmp_path, verb, layout=layout)
        trainer.train()
        logged[layout] = trainer.state.log_history[0]["shared_tokens"]
    rows = [e.prompt_ids + ids[:-1] for e in trainer.train_dataset for ids in e.completions]
    whole, head = sum(map(len, rows)), 24
    assert logged["packed"] == 1 < logged["padded"] == pytest.approx(len(rows) * max(map(len, rows)) / whole)
    prompts = sum((len(e.completions) - 1) * (len(e.prompt_ids) - head) for e in trainer.train_dataset)
    once = whole - (len(rows) - 1) * head - (prompts if verb == "dpo" else 0)
    assert logged["auto"] == pytest.approx(once / whole, abs=0.02)  # a token or two more begin alike


def test_noise_is_drawn_for_each_row(tmp_path: Path) -> None:
    sizes = []
    for alpha in (None, 5.0):
        trainer = trained(tmp_path, neftune_noise_alpha=alpha)
        sizes.append(trainer.build(trainer.train_dataset).input_ids.numel())
    assert sizes[1] == sum(len(e.prompt_ids) + sum(len(c) - 1 for c in e.completions) for e in trainer.train_dataset)
    assert sizes[0] <= sizes[1] - 3 * 24
