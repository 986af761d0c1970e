"""`predict` returns scores without further ado, and `compute_metrics` is told what is right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from strop.errors import SetupError
from strop.testing.cases import make_trainer, rows_for

RIGHT = {
    "reward": lambda row: 0,
    "dpo": lambda row: 0,
    "xpo": lambda row: 0,
    "orpo": lambda row: 0,
    "kto": lambda row: int(row["label"]),
    "bco": lambda row: int(row["label"]),
    "prm": lambda row: int(all(row["labels"])),
    "sft": lambda row: None,
}


@pytest.mark.parametrize("verb", RIGHT)
def test_predictions_and_labels_are_those_of_the_rows(verb: str, tmp_path: Path) -> None:
    rows, seen = rows_for(verb, 5), []

    def compute_metrics(prediction: Any) -> dict[str, float]:
        seen.append(prediction.label_ids)
        return {"rows": float(len(prediction.predictions))}

    trainer = make_trainer(verb, tmp_path, rows=rows, per_device_eval_batch_size=2)
    result = trainer.predict(rows)
    assert len(result.predictions) == 5 and np.isfinite(result.predictions).all()
    right = [RIGHT[verb](row) for row in rows]
    expected = None if right[0] is None else right
    assert (None if result.label_ids is None else result.label_ids.tolist()) == expected
    with_metrics = make_trainer(
        verb, tmp_path / "b", rows=rows, per_device_eval_batch_size=2, trainer={"compute_metrics": compute_metrics}
    )
    assert with_metrics.evaluate(rows)["eval_rows"] == 5
    assert (None if seen[0] is None else seen[0].tolist()) == expected


def test_an_evaluation_without_metrics_keeps_no_predictions(tmp_path: Path) -> None:
    trainer = make_trainer("dpo", tmp_path, rows=rows_for("dpo", 4))
    trainer.evaluate(rows_for("dpo", 4))
    loop = trainer.evaluation_loop(trainer.get_eval_dataloader(trainer.train_dataset), "Evaluation")
    assert loop.predictions is None


def halves(completions: list[str], **kwargs: Any) -> list[float | None]:
    """A reward that ties half of the prompts, and gives one no number."""
    return [None if row == 4 else float(i if row % 2 else 1) for i, row in enumerate(kwargs["number"])]


@pytest.mark.parametrize("verb", ["grpo", "rloo", "ppo", "online-dpo", "nash-md", "xpo-online"])
def test_sampled_completions_are_told_by_their_rewards(verb: str, tmp_path: Path) -> None:
    rows = [{**row, "number": number} for number, row in enumerate(rows_for(verb, 5))]
    seen: list[Any] = []

    def compute_metrics(prediction: Any) -> dict[str, float]:
        seen.append(prediction)
        return {"best": float(np.nanmax(prediction.predictions))}

    options = {"num_generations_eval": 2} if verb in ("grpo", "rloo", "ppo") else {}
    trainer = make_trainer(
        verb, tmp_path, rows=rows, per_device_eval_batch_size=2, max_completion_length=2, **options,
        trainer={"reward_funcs": halves, "compute_metrics": compute_metrics},
    )  # fmt: skip
    assert trainer.evaluate(rows)["eval_best"] >= 1.0
    rewards = trainer.predict(rows).predictions
    assert rewards.shape == seen[0].predictions.shape == (5, 2) and seen[0].label_ids is None
    assert np.isnan(rewards[4]).all() and np.isfinite(rewards[:4]).all()
    assert (rewards[[0, 2]] == 1.0).all() and (rewards[[1, 3], 0] != rewards[[1, 3], 1]).all()


def test_metrics_that_expect_logits_are_told_what_they_were_given(tmp_path: Path) -> None:
    metric = {"compute_metrics": lambda given: {"right": given.predictions.argmax(-1)[:, 1:].mean()}}
    trainer = make_trainer("sft", tmp_path, rows=rows_for("sft", 4), trainer=metric)
    with pytest.raises(IndexError) as error:
        trainer.evaluate(rows_for("sft", 4))
    assert "predictions of shape (4, 1)" in error.value.__notes__[0] and "label_ids: None" in error.value.__notes__[0]


def test_a_set_is_given_by_its_name_or_as_a_file(tmp_path: Path) -> None:
    file = tmp_path / "held_out.jsonl"
    file.write_text("\n".join(map(json.dumps, rows_for("sft", 3, seed=1))))
    trainer = make_trainer("sft", tmp_path, eval_rows={"other": rows_for("sft", 2)})
    assert [len(trainer.predict(given).predictions) for given in (str(file), "other")] == [3, 2]
    alone = make_trainer("sft", tmp_path / "alone", eval_rows=rows_for("sft", 2))
    assert alone.evaluate(str(file))["eval_loss"] == trainer.evaluate(str(file))["eval_loss"]
    with pytest.raises(SetupError, match="othr"):
        trainer.evaluate("othr")
