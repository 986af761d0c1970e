from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strop.errors import ConfigError
from strop.losses import dpo_loss, names, xpo_bonus, xpo_loss

NUMBER = st.floats(-6, 0)


def t(x: float) -> torch.Tensor:
    return torch.tensor([x], dtype=torch.float64)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(NUMBER, NUMBER, NUMBER, NUMBER, st.booleans(), st.sampled_from(names.XPO_LOSS_TYPES))
def test_without_the_bonus_it_is_dpo_against_the_reference(y, ref_y, opponent, ref_opponent, wins, loss_type):
    tensors = t(y), t(ref_y), t(opponent), t(ref_opponent)
    options = {"beta": 0.4, "loss_type": loss_type}
    found = xpo_loss(*tensors, torch.tensor([wins]), alpha=0.0, **options)
    policy, reference = (tensors[0], tensors[2]), (tensors[1], tensors[3])
    order = slice(None) if wins else slice(None, None, -1)
    torch.testing.assert_close(found, dpo_loss(*policy[order], *reference[order], **options))
    with_bonus = xpo_loss(*tensors, torch.tensor([wins]), alpha=0.3, **options)
    torch.testing.assert_close(with_bonus - found, xpo_bonus(tensors[2], alpha=0.3))


def test_the_bonus_is_alpha_per_completion_whoever_won():
    for wins in (True, False):
        grads = []
        for alpha in (0.0, 0.01):
            opponent = t(-4.0).requires_grad_()
            xpo_loss(t(-3.0), t(-3.5), opponent, t(-3.6), torch.tensor([wins]), alpha=alpha).backward()
            grads.append(float(opponent.grad))
        assert grads[1] - grads[0] == pytest.approx(0.01)


def test_policy_equal_to_reference():
    loss = xpo_loss(t(-3), t(-3), t(-4), t(-4), torch.tensor([True]), alpha=0.0)
    assert float(loss) == pytest.approx(math.log(2))


def test_unknown_loss_type():
    with pytest.raises(ConfigError, match="'sigmoid', 'ipo'"):
        xpo_loss(t(0), t(0), t(0), t(0), torch.tensor([True]), loss_type="hinge")
