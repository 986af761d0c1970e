"""KTO and BCO on every pattern of labels: batches of 1 to 9 rows, with and without both classes, against Python."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch

from strop.losses import (
    BalancedMean,
    bco_loss,
    class_sums,
    class_terms,
    ema_balanced,
    kto_loss,
    kto_reference_point,
    step_loss,
)
from strop.records import Term
from strop.testing.cases import make_trainer, rows_for
from strop.testing.scene import logps, move

PATTERNS = [labels for size in range(1, 10) for labels in itertools.product((True, False), repeat=size)]
BETA = 0.3


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def by_class(values: list[float], labels: tuple[bool, ...]) -> list[list[float]]:
    return [[v for v, label in zip(values, labels, strict=True) if label is wanted] for wanted in (True, False)]


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def kto(ratios: list[float], mismatched: list[float], labels: tuple[bool, ...]) -> float:
    point = max(0.0, mean(mismatched))
    return mean([1 - sigmoid((1 if d else -1) * BETA * (u - point)) for u, d in zip(ratios, labels, strict=True)])


def bco(ratios: list[float], labels: tuple[bool, ...]) -> float:
    """The first step: the running means are those of the step, 0 for a class that is absent."""
    rewards = [BETA * u for u in ratios]
    delta = sum(mean(part) for part in by_class(rewards, labels)) / 2
    return mean([softplus(-(1 if d else -1) * (r - delta)) for r, d in zip(rewards, labels, strict=True)])


def test_losses_on_every_pattern() -> None:
    assert len(PATTERNS) == 1022
    for labels in PATTERNS:
        size = len(labels)
        u = torch.sin(1.3 * torch.arange(size, dtype=torch.float64) + size).requires_grad_()
        mismatched = torch.cos(2.1 * torch.arange(size, dtype=torch.float64))
        flags, counts = (
            torch.tensor(labels),
            {"trees": size, "desirable": sum(labels), "undesirable": size - sum(labels)},
        )
        point = kto_reference_point(mismatched.sum(), size)
        values = kto_loss(u, flags, point, beta=BETA)
        found = float(step_loss([Term(values, "trees")], counts).detach())
        assert found == pytest.approx(kto(u.tolist(), mismatched.tolist(), labels), abs=1e-12)
        classes = step_loss(class_terms(kto_loss(u, flags, point, beta=BETA, loss_type="kto_exp"), flags), counts)
        delta = ema_balanced(BalancedMean(), class_sums(BETA * u, flags)).delta
        shifted = step_loss([Term(bco_loss(BETA * u, flags, delta), "trees")], counts)
        assert float(shifted.detach()) == pytest.approx(bco(u.tolist(), labels), abs=1e-12)
        (gradient,) = torch.autograd.grad(values.sum() + classes + shifted, u)
        assert bool(gradient.isfinite().all()) and bool((gradient != 0).all()), labels


@pytest.mark.parametrize("verb", ["kto", "bco"])
def test_trainers_on_every_pattern_of_up_to_three_rows(verb: str, tmp_path: Path) -> None:
    trainer = make_trainer(verb, tmp_path, rows=rows_for(verb, 9), beta=BETA)
    move(trainer.model, seed=1)
    trees = [trainer.train_dataset[i] for i in range(3)]
    with torch.no_grad(), trainer.reference.active() as reference:
        ratios = [
            [
                float((logps(trainer.model, t.prompt_ids, c) - logps(reference, t.prompt_ids, c)).sum())
                for c in t.completions
            ]
            for t in trees
        ]
    for labels in (pattern for pattern in PATTERNS if len(pattern) <= 3):
        for tree, label in zip(trees, labels, strict=False):
            tree.extras["label"] = label
        used = ratios[: len(labels)]
        own = [values[0] for values in used]
        expected = kto(own, [v[1] for v in used], labels) if verb == "kto" else bco(own, labels)
        for at_once in (1, 3):
            trainer.args.per_device_train_batch_size = at_once
            if verb == "bco":
                trainer.delta_state = BalancedMean()
            trainer.model.zero_grad()
            loss = trainer.training_step(trainer.model, trainer.make_work(trees[: len(labels)]))
            assert float(loss) == pytest.approx(expected, abs=1e-6), (labels, at_once)
            assert all(bool(p.grad.isfinite().all()) for p in trainer.model.parameters() if p.grad is not None)
