"""The advice on weights when one class of labelled rows outnumbers the other, and what mismatched completions cost."""

from __future__ import annotations

import re

import pytest
import torch

from strop.records import Example
from strop.testing.cases import make_trainer, rows_for


def kto(folder, good, bad, **weights):
    rows = [{**row, "label": index < good} for index, row in enumerate(rows_for("kto", good + bad))]
    return make_trainer("kto", folder, rows=rows, **weights)


def test_imbalance_is_named_with_weights_that_fit(tmp_path, capsys):
    kto(tmp_path, 9, 3)
    said = capsys.readouterr().out
    assert "9 desirable and 3 undesirable rows" in said and "3.00; 1 to 1.5 is advised" in said
    low, high = map(float, re.search(r"between (\S+) and (\S+)\.\s", said).groups())
    assert (low, high) == pytest.approx((0.33, 0.5))
    kto(tmp_path, 9, 3, desirable_weight=0.4)
    assert "advised" not in capsys.readouterr().out


@pytest.mark.parametrize(("good", "bad"), [(4, 4), (6, 4), (5, 0)])
def test_balance_and_a_class_alone_say_nothing(good, bad, tmp_path, capsys):
    kto(tmp_path, good, bad)
    assert "advised" not in capsys.readouterr().out


def kto_step(folder, prompt, apart=None):
    """Gradient, loss and reference point of a step of four rows in one micro-batch, and (whether it has a gradient,
    completions) of each pass over the policy."""
    trainer = make_trainer("kto", folder, dtype=torch.float64, per_device_train_batch_size=4)
    own, other = [[7, 8, 9, 10], [8, 9], [11, 7, 9], [12]], [[9, 9, 8, 7, 6], [12, 11], [7], [10, 9, 8]]
    extras = [{"label": index % 2 == 0} for index in range(4)]
    rows = [
        Example([13 + i] * prompt, [a, b], extras=c) for i, (a, b, c) in enumerate(zip(own, other, extras, strict=True))
    ]
    passes, score = [], trainer.score

    def noted(model, batch, log):
        passes.append((torch.is_grad_enabled(), batch.num_completions))
        return score(model, batch, log)

    trainer.score = noted
    if apart is not None:
        trainer.statistics_apart = lambda work: apart
    draw = torch.Generator().manual_seed(4)
    with torch.no_grad():  # away from the reference, so that the reference point is not 0
        for weight in trainer.model.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=draw, dtype=weight.dtype))
    loss = trainer.training_step(trainer.model, trainer.make_work(rows))
    kl = torch.tensor(trainer._metrics["train"].drain(world_size=1)["kl"])
    return torch.cat([p.grad.flatten() for p in trainer.model.parameters()]), loss, kl, passes


def test_mismatched_completions_have_no_backward_where_that_is_less_work(tmp_path):
    *found, passes = kto_step(tmp_path / "short", prompt=2)  # 8 tokens of prompts, 11 of mismatched completions
    assert passes == [(False, 4), (True, 4)]
    *joint, passes = kto_step(tmp_path / "joint", prompt=2, apart=False)
    assert passes == [(True, 8)]
    assert joint[2] > 0.01
    torch.testing.assert_close(found, joint, atol=1e-12, rtol=1e-9)
    assert kto_step(tmp_path / "long", prompt=3)[3] == [(True, 8)]
