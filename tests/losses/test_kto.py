from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strop.errors import ConfigError
from strop.losses import kto_loss, kto_reference_point

PROPERTY = settings(max_examples=30, deadline=None, derandomize=True)
ROWS = st.lists(st.tuples(st.floats(-8, 8), st.booleans()), min_size=1, max_size=9)


def columns(rows):
    return torch.tensor([u for u, _ in rows], dtype=torch.float64), torch.tensor([d for _, d in rows])


def test_policy_equal_to_reference():
    u = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([True, True, False, False])
    point = kto_reference_point(torch.zeros(()), 4)
    values = kto_loss(u, labels, point, beta=0.2, desirable_weight=1.2, undesirable_weight=0.8)
    values.mean().backward()
    assert float(point) == 0.0
    assert values.tolist() == pytest.approx([0.6, 0.6, 0.4, 0.4])
    assert u.grad.tolist() == pytest.approx([-1.2 * 0.2 / 16] * 2 + [0.8 * 0.2 / 16] * 2)


@PROPERTY
@given(ROWS, st.floats(0, 3))
def test_bounds_and_relabelling(rows, kl):
    u, labels = columns(rows)
    values = kto_loss(u, labels, kl, beta=0.5, desirable_weight=1.3, undesirable_weight=0.7)
    assert ((values > 0) & (values < torch.where(labels, 1.3, 0.7).double() + 1e-12)).all()
    mirrored = kto_loss(2 * kl - u, ~labels, kl, beta=0.5, desirable_weight=0.7, undesirable_weight=1.3)
    torch.testing.assert_close(mirrored, values)


@PROPERTY
@given(ROWS)
def test_rows_do_not_see_each_other(rows):
    """Only the reference point ties rows together: rotating or splitting the batch changes no row's loss."""
    u, labels = columns(rows)
    whole = kto_loss(u, labels, 0.3)
    torch.testing.assert_close(kto_loss(u.roll(1), labels.roll(1), 0.3), whole.roll(1))
    torch.testing.assert_close(torch.cat([kto_loss(u[:1], labels[:1], 0.3), kto_loss(u[1:], labels[1:], 0.3)]), whole)


@pytest.mark.parametrize("labels", [[1, 1], [0, 0], [True, False]])
def test_single_class_and_label_types(labels):
    values = kto_loss(torch.zeros(2), torch.tensor(labels), 0.0)
    assert values.tolist() == [0.5, 0.5]
    assert torch.isfinite(kto_loss(torch.zeros(2), torch.tensor(labels), 0.0, loss_type="kto_exp")).all()


def test_reference_point_is_clamped_after_the_mean_and_carries_no_gradient():
    ratios = torch.tensor([3.0, -1.0], requires_grad=True)
    assert float(kto_reference_point(ratios.sum(), 2)) == 1.0
    assert not kto_reference_point(ratios.sum(), 2).requires_grad
    assert float(kto_reference_point(-ratios.detach().sum(), 2)) == 0.0
    assert float(kto_reference_point(0.0, 0)) == 0.0
    kl = torch.tensor(0.5, requires_grad=True)
    u = torch.ones(1, requires_grad=True)
    kto_loss(u, torch.tensor([1]), kl).backward()
    assert kl.grad is None
    assert float(kto_loss(u.detach(), torch.tensor([1]), -3.0)) == float(kto_loss(u.detach(), torch.tensor([1]), 0.0))


@pytest.mark.parametrize("loss_type", ["kto", "apo_zero_unpaired", "kto_exp"])
def test_far_from_the_reference_the_gradient_vanishes(loss_type):
    for far in (-1e3, 1e3):
        u = torch.tensor([far, far], requires_grad=True)
        values = kto_loss(u, torch.tensor([1, 0]), 0.2, loss_type=loss_type, beta=1.0)
        values.sum().backward()
        assert torch.isfinite(values).all()
        assert u.grad.abs().max() < 1e-30


def test_good_rows_go_up_and_bad_rows_go_down():
    for loss_type in ("kto", "apo_zero_unpaired", "kto_exp"):
        u = torch.tensor([0.3, 0.3, -0.3, -0.3, 0.0, 0.0], requires_grad=True)
        kto_loss(u, torch.tensor([1, 0] * 3), 0.0, loss_type=loss_type).sum().backward()
        assert (u.grad[::2] < 0).all(), loss_type
        assert (u.grad[1::2] > 0).all(), loss_type


@pytest.mark.filterwarnings("ignore:kto_literal")
def test_the_literal_form_unlearns():
    """Its value function peaks at 0: good rows below it are pushed further down."""
    u = torch.tensor([-0.3, 0.3], requires_grad=True)
    values = kto_loss(u, torch.tensor([1, 1]), None, beta=0.5, loss_type="kto_literal")
    values.sum().backward()
    assert (values < 0).all()
    assert u.grad[0] > 0
    assert u.grad[1] < 0
    assert math.isfinite(float(kto_loss(torch.tensor([1e4]), torch.tensor([1]), None, loss_type="kto_literal")))


def test_unknown_loss_type():
    with pytest.raises(ConfigError, match="loss_type is 'bco'"):
        kto_loss(torch.zeros(1), torch.tensor([1]), 0.0, loss_type="bco")
