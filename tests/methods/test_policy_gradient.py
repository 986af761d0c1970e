"""Dynamic sampling: groups that teach nothing are replaced by groups of further prompts; what a round leaves behind."""

from __future__ import annotations

import pytest
import torch

from strop.engine.step import token_field
from strop.records import Want
from strop.testing.cases import make_trainer, rows_for
from strop.testing.rollouts import fix_rollouts

ROWS = [{"prompt": f"{kind} {i}", "kind": kind} for i in range(4) for kind in ("flat", "steep")]


def uneven(completions, kind, **columns):
    """All alike under a flat prompt; all different under a steep one."""
    return [0.5 if k == "flat" else float(i) for i, k in enumerate(kind)]


def grpo(folder, **options):
    settings = {"num_generations": 2, "per_device_train_batch_size": 8, "max_completion_length": 4, **options}
    return make_trainer("grpo", folder, rows=ROWS, trainer={"reward_funcs": uneven}, dynamic_sampling=True, **settings)


def kinds(trainer, trees):
    return [trainer.train_dataset[tree.row].extras["columns"]["kind"] for tree in trees]


def test_flat_groups_are_replaced_until_the_step_is_full(tmp_path):
    trainer = grpo(tmp_path)
    trees = trainer.prepare_step([trainer.train_dataset[i] for i in range(4)])  # two of each kind
    assert kinds(trainer, trees) == ["steep"] * 4 and len({tree.row for tree in trees}) == 4
    assert all(any(tree.sampled.advantages) for tree in trees)
    kept = trainer._metrics["train"].drain()["dynamic_sampling/kept_ratio"]
    assert 4 / 8 <= kept < 1 and trainer.rounds > 1


def test_rounds_of_replacement_are_bounded(tmp_path):
    trainer = grpo(tmp_path, max_resampling_rounds=1)
    flat = [i for i, row in enumerate(ROWS) if row["kind"] == "flat"]
    trees = trainer.prepare_step([trainer.train_dataset[i] for i in flat])
    assert set(kinds(trainer, trees)) == {"steep"} and trainer.rounds == 2


def test_where_nothing_teaches_the_groups_stay_and_count(tmp_path):
    trainer = grpo(tmp_path)
    flat = [i for i, row in enumerate(ROWS) if row["kind"] == "flat"]
    trainer.train_dataset = [trainer.train_dataset[i] for i in flat]
    trees = trainer.prepare_step(list(trainer.train_dataset))
    assert len(trees) == 4 and not any(any(tree.sampled.advantages) for tree in trees)
    assert trainer._metrics["train"].drain()["dynamic_sampling/kept_ratio"] == pytest.approx(0.0)


def in_order(completions, **columns):
    return [float(i) for i in range(len(completions))]


@pytest.mark.parametrize("verb", ["grpo", "rloo"])
def test_the_first_use_of_a_round_leaves_its_log_probs_behind(verb, tmp_path):
    options = {"num_iterations": 2, "num_generations": 2, "trainer": {"reward_funcs": in_order}}
    trainer = fix_rollouts(make_trainer(verb, tmp_path, rows=rows_for(verb, 4), **options))
    step = trainer.prepare_step([trainer.train_dataset[i] for i in range(2)])
    batch = trainer.build(step)
    expected = trainer.score_with(trainer.policy, batch, Want.LOGPS).logps.detach()
    trainer.training_step(trainer.model, trainer.make_work(step))
    torch.testing.assert_close(token_field(batch, "old_logps"), expected, rtol=0, atol=1e-12)
    assert not trainer.left_behind
