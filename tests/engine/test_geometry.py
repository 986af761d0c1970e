"""The reduction law: a step's gradient depends on the set of its rows, not on how they are cut or ordered."""

from __future__ import annotations

import random

import pytest
from peft import LoraConfig

from strop.testing.cases import largest_difference, make_trainer, rows_for, step_gradients
from strop.testing.scene import move

OFFLINE = ("sft", "reward", "dpo", "kto", "orpo", "cpo", "bco", "xpo", "prm")
TOLERANCE = 1e-10


def gradients(verb, folder, *, shuffle=None, **overrides):
    trainer = make_trainer(verb, folder, rows=rows_for(verb, 7), **overrides)
    move(trainer.model, seed=1)  # away from the reference, where every KL and every shift is 0
    examples = [trainer.train_dataset[i] for i in range(len(trainer.train_dataset))]
    if shuffle is not None:
        random.Random(shuffle).shuffle(examples)
    return step_gradients(trainer, examples)


@pytest.mark.parametrize("verb", OFFLINE)
def test_micro_batches_order_and_layout_leave_the_gradient_alone(verb, tmp_path):
    whole = gradients(verb, tmp_path, per_device_train_batch_size=8)
    assert any(float(g.abs().max()) > 1e-6 for g in whole.values())
    cuts = [
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8, "shuffle": 3},
        {"per_device_train_batch_size": 8, "max_tokens_per_micro_batch": 40, "layout": "packed"},
        {"per_device_train_batch_size": 4, "layout": "padded"}
        | ({} if verb in ("reward", "prm") else {"head_memory_mb": 1}),
    ]
    for cut in cuts:
        assert largest_difference(whole, gradients(verb, tmp_path, **cut)) < TOLERANCE, cut


@pytest.mark.parametrize("verb", OFFLINE)
def test_the_same_with_an_adapter(verb, tmp_path):
    task = {"reward": "SEQ_CLS", "prm": "TOKEN_CLS"}.get(verb, "CAUSAL_LM")
    lora = {"peft_config": LoraConfig(r=2, target_modules="all-linear", task_type=task, init_lora_weights=False)}
    import torch

    def with_adapter(**overrides):
        torch.manual_seed(0)
        return gradients(verb, tmp_path, trainer=dict(lora), **overrides)

    whole = with_adapter(per_device_train_batch_size=8)
    assert all("lora" in name or "modules_to_save" in name or "score" in name for name in whole)
    assert largest_difference(whole, with_adapter(per_device_train_batch_size=2, layout="padded")) < TOLERANCE


@pytest.mark.parametrize(
    "options",
    [
        {"loss_type": "aot"},
        {"loss_type": "aot_unpaired"},
        {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]},
        {"loss_type": "ipo", "ld_alpha": 0.5},
        {"loss_type": "sigmoid", "use_weighting": True},
    ],
    ids=str,
)
def test_dpo_options_obey_the_law_too(options, tmp_path):
    whole = gradients("dpo", tmp_path, per_device_train_batch_size=8, **options)
    assert (
        largest_difference(whole, gradients("dpo", tmp_path, per_device_train_batch_size=2, shuffle=1, **options))
        < TOLERANCE
    )


def test_a_mean_of_micro_batch_means_would_be_noticed(tmp_path):
    """Rows of uneven length: dividing by each micro-batch's own tokens gives another gradient."""
    whole = gradients("sft", tmp_path, per_device_train_batch_size=8)
    trainer = make_trainer("sft", tmp_path, rows=rows_for("sft", 7), per_device_train_batch_size=1)
    move(trainer.model, seed=1)
    trainer.model.zero_grad()
    for index in range(7):
        work = trainer.make_work([trainer.train_dataset[index]])
        trainer.training_step(trainer.model, work)
    naive = {name: p.grad / 7 for name, p in trainer.model.named_parameters() if p.grad is not None}
    assert largest_difference(whole, naive) > 1e-6
