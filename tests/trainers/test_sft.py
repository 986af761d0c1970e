"""Ways to hand rows to SFT, and what a user's own metrics are given."""

from __future__ import annotations

import pytest

from strop.testing.cases import make_trainer, rows_for


def test_formatting_func_makes_the_text(tmp_path):
    rows = [{"question": "ant", "answer": "bee"}, {"question": "cat", "answer": "dog"}]
    trainer = make_trainer(
        "sft", tmp_path, rows=rows, trainer={"formatting_func": lambda row: f"{row['question']}: {row['answer']}"}
    )
    texts = [trainer.processing_class.decode(e.completions[0], skip_special_tokens=True) for e in trainer.train_dataset]
    assert texts == ["ant: bee", "cat: dog"]


def test_compute_metrics_gets_a_prediction_per_row_in_order(tmp_path):
    given = []

    def compute_metrics(prediction):
        given.append(prediction.predictions)
        return {"least": float(prediction.predictions.min())}

    rows = rows_for("dpo", 5)
    options = {"trainer": {"compute_metrics": compute_metrics}, "per_device_eval_batch_size": 2}
    trainer = make_trainer("dpo", tmp_path, rows=rows, eval_rows=rows, **options)
    metrics = trainer.evaluate()
    assert given[0].shape == (5, 2) and metrics["eval_least"] == given[0].min()
    assert given[0][:, 0].mean() == pytest.approx(metrics["eval_logps/chosen"], abs=1e-5)
