"""A router's load-balancing loss has the whole of its weight in every method, however a step is cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from strop.engine.step import routed_tokens
from strop.records import Example
from strop.testing.cases import make_trainer, rows_for, step_gradients

WEIGHT = 0.5


@pytest.fixture(autouse=True)
def unit_router(monkeypatch: pytest.MonkeyPatch) -> None:
    """A load-balancing loss of 1 for every micro-batch: what it adds to the loss is then the weight that it has."""
    monkeypatch.setattr("strop.model.forward.router_loss", lambda logits, weights, config: 1 + 0 * logits[0].sum())


def losses(verb: str, folder: Path, weight: float, **options: Any) -> tuple[float, float]:
    """The loss of one step over all rows, and that of an evaluation of them."""
    rows = rows_for(verb, 4)
    options = {"gradient_accumulation_steps": 4, "seed": 3, **options}
    trainer = make_trainer(
        verb, folder, rows=rows, eval_rows=rows, arch="qwen3_moe", router_aux_loss_coef=weight, **options
    )
    step_gradients(trainer)
    return float(sum(trainer.step_work.losses)), trainer.evaluate()["eval_loss"]


@pytest.mark.parametrize(
    ("verb", "options"),
    [
        ("sft", {"per_device_train_batch_size": 1}),
        ("dpo", {"per_device_train_batch_size": 2}),
        ("kto", {"per_device_train_batch_size": 1}),
        ("kto", {"per_device_train_batch_size": 4}),
        ("kto", {"per_device_train_batch_size": 2, "loss_type": "apo_zero_unpaired"}),
        ("grpo", {"per_device_train_batch_size": 2, "num_generations": 4, "trainer": {"reward_funcs": len}}),
        ("rloo", {"per_device_train_batch_size": 2, "num_generations": 4, "trainer": {"reward_funcs": len}}),
    ],
    ids=str,
)
def test_the_weights_of_the_micro_batches_add_up_to_one(verb: str, options: dict[str, Any], tmp_path: Path) -> None:
    """With trees of several completions, partners that are computed without gradient, groups cut into pieces, and
    groups of equal rewards, which teach nothing but the router."""
    if "trainer" in options:
        options = {**options, "trainer": {"reward_funcs": lambda completions, **kwargs: [1.0] * len(completions)}}
    without, with_router = losses(verb, tmp_path / "0", 0.0, **options), losses(verb, tmp_path / "1", WEIGHT, **options)
    assert [b - a for a, b in zip(without, with_router, strict=True)] == pytest.approx([WEIGHT, WEIGHT], abs=1e-6)


def test_tokens_count_as_in_the_padded_layout() -> None:
    whole, parts = Example([1, 2, 3], [[4], [5, 6]]), [Example([1, 2, 3], [[4]]), Example([1, 2, 3], [[5, 6]])]
    assert routed_tokens([whole]) == routed_tokens(parts) == 9
