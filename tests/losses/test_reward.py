from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strop.losses import reward_loss

PROPERTY = settings(max_examples=40, deadline=None, derandomize=True)
NUMBER = st.floats(-50, 50)


def t(x: float) -> torch.Tensor:
    return torch.tensor([x], dtype=torch.float64)


@PROPERTY
@given(NUMBER, NUMBER, NUMBER)
def test_invariances(w, r, k):
    value = float(reward_loss(t(w), t(r)))
    assert float(reward_loss(t(w + k), t(r + k))) == pytest.approx(value, rel=1e-9, abs=1e-9)
    assert value - float(reward_loss(t(r), t(w))) == pytest.approx(-(w - r), rel=1e-9, abs=1e-9)
    assert float(reward_loss(t(w), t(r), margin=t(k))) == pytest.approx(float(reward_loss(t(w - k), t(r))))


@PROPERTY
@given(NUMBER, NUMBER)
def test_gradients_cancel(w, r):
    leaves = [t(w).requires_grad_(), t(r).requires_grad_()]
    grad_w, grad_r = torch.autograd.grad(reward_loss(*leaves), leaves)
    torch.testing.assert_close(grad_w, -grad_r)


def test_equal_scores_and_centring():
    assert float(reward_loss(t(3), t(3))) == pytest.approx(math.log(2))
    assert float(reward_loss(t(3), t(3), center_coefficient=0.1)) == pytest.approx(math.log(2) + 3.6)
    assert float(reward_loss(t(3), t(3), center_coefficient=0.0)) == pytest.approx(math.log(2))


def test_finite_at_extremes():
    leaf = torch.tensor([-1e4], requires_grad=True)
    loss = reward_loss(leaf, -leaf)
    loss.backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(leaf.grad).all()
