from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strop.errors import ConfigError
from strop.losses import cpo_loss, cpo_score, dpo_loss, names

PROPERTY = settings(max_examples=30, deadline=None, derandomize=True)
NUMBER = st.floats(-8, 0)


def t(x: float) -> torch.Tensor:
    return torch.tensor([x], dtype=torch.float64)


def test_equal_scores():
    assert float(cpo_loss(t(-3), t(-3))) == pytest.approx(math.log(2))
    for loss_type in ("simpo", "alphapo"):
        value = cpo_loss(t(-3), t(-3), loss_type=loss_type, simpo_gamma=0.7)
        assert float(value) == pytest.approx(math.log1p(math.exp(0.7)))


@PROPERTY
@given(NUMBER, NUMBER, st.floats(-3, 3))
def test_shift_invariance(w, r, k):
    for loss_type in names.CPO_LOSS_TYPES:
        value = float(cpo_loss(t(w), t(r), loss_type=loss_type))
        assert float(cpo_loss(t(w + k), t(r + k), loss_type=loss_type)) == pytest.approx(value, rel=1e-9, abs=1e-9)


@PROPERTY
@given(NUMBER, NUMBER, st.integers(1, 9), st.integers(1, 9))
def test_repeating_every_token(w, r, len_w, len_r):
    lengths = {"lengths_chosen": t(len_w), "lengths_rejected": t(len_r)}
    doubled = {name: 2 * value for name, value in lengths.items()}
    for loss_type in names.CPO_AVERAGED_TYPES:
        once = cpo_loss(t(w), t(r), loss_type=loss_type, **lengths)
        torch.testing.assert_close(cpo_loss(t(2 * w), t(2 * r), loss_type=loss_type, **doubled), once)
        averages = cpo_loss(t(w / len_w), t(r / len_r), loss_type=loss_type)
        torch.testing.assert_close(averages, once)
    if abs(w - r) > 1e-3:
        assert not torch.allclose(cpo_loss(t(2 * w), t(2 * r)), cpo_loss(t(w), t(r)), rtol=1e-9, atol=0)


@PROPERTY
@given(NUMBER, NUMBER, st.sampled_from([0.0, 0.1, 0.5]))
def test_sigmoid_is_dpo_with_a_uniform_reference(w, r, eps):
    reference = t(-4.2)
    dpo = dpo_loss(t(w), t(r), reference, reference, label_smoothing=eps)
    torch.testing.assert_close(cpo_loss(t(w), t(r), label_smoothing=eps), dpo)


@PROPERTY
@given(st.floats(-10, 0), st.floats(-1, 1).filter(lambda a: abs(a) > 1e-6))
def test_alphapo_shape(mean, alpha):
    leaf = t(mean).requires_grad_()
    score = cpo_score(leaf, alpha=alpha)
    score.backward()
    assert float(leaf.grad) == pytest.approx(math.exp(-alpha * mean), rel=1e-9)
    near = float(cpo_score(t(mean), alpha=1e-9))
    assert near == pytest.approx(mean, abs=1e-6)


def test_no_overflow_for_unlikely_completions():
    """exp(-alpha * l) of a summed log-prob of -2000 is inf in float32; the straight continuation keeps it finite."""
    leaf = torch.tensor([-2000.0], requires_grad=True)
    loss = cpo_loss(leaf, torch.tensor([-1.0]), loss_type="alphapo", alpha=0.5)
    loss.backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(leaf.grad).all()


def test_gamma_is_an_absolute_margin():
    value = float(cpo_loss(t(-1), t(-2), loss_type="simpo", beta=2.0, simpo_gamma=1.0))
    assert value == pytest.approx(math.log1p(math.exp(-(2.0 - 1.0))))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loss_type": "sigmoid", "alpha": 0.25}, "alpha has no meaning for loss_type 'sigmoid'"),
        ({"loss_type": "hinge", "label_smoothing": 0.1}, "label_smoothing has no meaning"),
        ({"label_smoothing": 0.6}, "must lie in"),
        ({"loss_type": "symbo"}, "not known"),
        ({"loss_type": "ipo", "lengths_chosen": torch.ones(1)}, "Only one of"),
    ],
)
def test_wrong_options(options, words):
    with pytest.raises(ConfigError, match=words):
        cpo_loss(torch.zeros(1), torch.zeros(1), **options)
