from __future__ import annotations

import pytest
import torch

from strop.methods.prm import score_steps
from strop.model import score
from strop.records import Want
from strop.testing.cases import make_trainer, rows_for


def test_score_steps_uses_the_layout_of_training(tmp_path):
    rows = rows_for("prm", 3)
    trainer = make_trainer("prm", tmp_path, rows=rows, step_separator=" ##")
    for index, row in enumerate(rows):
        judged = score_steps(
            trainer.model, trainer.processing_class, row["prompt"], row["completions"], args=trainer.args
        )
        with torch.no_grad():
            logits = score(trainer.model, [trainer.train_dataset[index]], want=Want.STEP).step_logits
        assert judged == pytest.approx(torch.softmax(logits, -1)[:, 1].tolist(), abs=1e-9)
        assert len(judged) == len(row["completions"])


def test_inline_marks_become_labels_and_leave_the_text(tmp_path):
    rows = [{"prompt": "p", "completion": "cat dog [+] bee ant [-]"}]
    trainer = make_trainer("prm", tmp_path, rows=rows, label_format="inline")
    example = trainer.train_dataset[0]
    assert [bool(label) for label in example.extras["labels"]] == [True, False]
    assert "[+]" not in trainer.processing_class.decode(example.completions[0])


def test_only_the_last_step_is_learned_but_all_are_evaluated(tmp_path):
    rows = rows_for("prm", 4)
    last = make_trainer("prm", tmp_path, rows=rows, eval_rows=rows, train_on_last_step_only=True)
    every = make_trainer("prm", tmp_path, rows=rows, eval_rows=rows)
    assert last.evaluate()["eval_loss"] == every.evaluate()["eval_loss"]
    counts = last.counts([last.train_dataset[i] for i in range(4)])
    assert counts["steps"] == 4 and counts["all_steps"] == sum(len(r["labels"]) for r in rows)
