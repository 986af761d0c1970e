"""Asking changes nothing: statistics, old log-probs and the buffer move in steps of their own."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from strop.errors import RolloutError
from strop.testing.cases import make_trainer, rows_for
from strop.testing.rollouts import fix_rollouts

TWO_STEPS = {"steps_per_generation": 2, "num_generations": 2, "per_device_train_batch_size": 4}


def test_statistics_are_asked_for_as_often_as_one_likes(tmp_path: Path) -> None:
    bco = make_trainer("bco", tmp_path)
    values = {"rewards": torch.tensor([1.0, -2.0]), "labels": torch.tensor([True, False])}
    grpo = make_trainer("grpo", tmp_path, use_adaptive_entropy=True, entropy_coef=0.1)
    entropy = {"entropy": torch.tensor([9.0, 9.0])}
    for trainer, given in ((bco, values), (grpo, entropy)):
        before = copy.deepcopy(trainer.extra_state())
        found = [trainer.reduce_statistics(given, True) for _ in range(2)]
        assert trainer.extra_state() == before and found[0] == found[1]
        trainer.advance(found[0])
        assert trainer.extra_state() != before


@pytest.mark.parametrize("verb", ["grpo", "rloo"])
def test_a_loss_leaves_its_trees_as_they_are(verb: str, tmp_path: Path) -> None:
    trainer: Any = fix_rollouts(make_trainer(verb, tmp_path, rows=rows_for(verb, 4), num_iterations=2, **TWO_STEPS))
    trees = trainer.prepare_step([trainer.train_dataset[i] for i in range(4)])
    before = copy.deepcopy(trees)
    work = trainer.make_work(trees)
    batch = trainer.build(work.examples)
    trainer.loss(trainer.score(trainer.model, batch, True), batch, trainer.context(batch, work, True))
    assert trees == before
    trainer.training_step(trainer.model, work)
    assert trees != before  # the log-probs that the second use is compared with


def test_prompts_are_not_dropped_while_completions_wait(tmp_path: Path) -> None:
    trainer: Any = fix_rollouts(make_trainer("grpo", tmp_path, rows=rows_for("grpo", 4), **TWO_STEPS))
    prompts = [trainer.train_dataset[i] for i in range(4)]
    trainer.prepare_step(prompts)
    with pytest.raises(RolloutError, match="4 prompts came while completions for 1 optimizer step wait"):
        trainer.prepare_step(prompts)


def test_an_epoch_that_begins_again_samples_again(tmp_path: Path) -> None:
    """`ignore_data_skip` hands the first prompts over once more; what was sampled for others is left out."""
    options = {"rows": rows_for("grpo", 8), "max_steps": 2, "save_strategy": "steps", "save_steps": 1, **TWO_STEPS}
    options |= {"shuffle_dataset": False, "save_total_limit": None}
    fix_rollouts(make_trainer("grpo", tmp_path, **options)).train()
    resumed: Any = fix_rollouts(make_trainer("grpo", tmp_path, ignore_data_skip=True, **options))
    seen: list[set[int]] = []
    prepare = resumed.prepare_step
    resumed.prepare_step = lambda examples: [seen.append({e.row for e in prepare(examples)}), []][1]
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert seen == [{0, 1}]
