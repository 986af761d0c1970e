from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strop.losses.numerics import (
    EXP_LIMIT,
    choose,
    exp_bounded,
    expm1_bounded,
    importance_ratio,
    log1mexp,
    log_odds,
    logsigmoid,
    widen,
)

PROPERTY = settings(max_examples=40, deadline=None, derandomize=True)


def with_grad(f, x: float, dtype: torch.dtype = torch.float64) -> tuple[float, float]:
    leaf = torch.tensor([x], dtype=dtype, requires_grad=True)
    value = f(leaf)
    value.sum().backward()
    return float(value.detach()), float(leaf.grad)


@PROPERTY
@given(st.floats(-700, -1e-300))
def test_log1mexp_value_and_gradient(x):
    value, grad = with_grad(log1mexp, x)
    # log1p of the exact complement loses nothing where e^x is small; -expm1 nothing where it is near 1.
    expected = math.log1p(-math.exp(x)) if x < -1 else math.log(-math.expm1(x))
    assert value == pytest.approx(expected, rel=1e-13, abs=1e-300)
    assert grad == pytest.approx(-math.exp(x) / -math.expm1(x), rel=1e-12, abs=1e-300)


@pytest.mark.parametrize("x", [-1e-30, -6e-8, -1e-7, -0.69314, -0.6932, -50.0, -120.0])
def test_log1mexp_has_no_nan_in_float32(x):
    value, grad = with_grad(log1mexp, x, torch.float32)
    assert math.isfinite(value)
    assert math.isfinite(grad)


def test_log1mexp_at_zero_is_minus_infinity():
    assert with_grad(log1mexp, 0.0)[0] == -math.inf


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_odds_is_finite_at_certainty(dtype):
    value, grad = with_grad(log_odds, 0.0, dtype)
    assert value == pytest.approx(34.5388 if dtype == torch.float64 else 16.1181, abs=1e-3)
    assert grad == 0.0


def test_log_odds_near_certainty():
    x = math.log1p(-1e-9)
    value, grad = with_grad(log_odds, x)
    assert value == pytest.approx(x - math.log(1e-9), rel=1e-7)
    assert grad == pytest.approx(1e9, rel=1e-6)


@PROPERTY
@given(st.floats(-1e4, 1e4))
def test_exponentials_are_finite_and_increasing(x):
    for f in (exp_bounded, expm1_bounded):
        value, grad = with_grad(f, x, torch.float32)
        assert math.isfinite(value)
        assert math.isfinite(grad)
        assert with_grad(f, x + 1.0, torch.float32)[0] >= value
        assert grad >= 0
    if x <= EXP_LIMIT:
        assert math.isclose(with_grad(exp_bounded, x)[0], math.exp(x), rel_tol=1e-15)
        assert math.isclose(with_grad(expm1_bounded, x)[0], math.expm1(x), rel_tol=1e-15)


def test_exponential_goes_on_straight():
    below, above = with_grad(exp_bounded, EXP_LIMIT - 1e-7), with_grad(exp_bounded, EXP_LIMIT + 1e-7)
    assert below == pytest.approx(above, rel=1e-6)
    value, grad = with_grad(exp_bounded, EXP_LIMIT + 5)
    assert value == pytest.approx(6 * math.exp(EXP_LIMIT))
    assert grad == pytest.approx(math.exp(EXP_LIMIT))
    assert with_grad(exp_bounded, EXP_LIMIT)[1] == pytest.approx(math.exp(EXP_LIMIT))


def test_ratio_never_overflows():
    ratio = importance_ratio(torch.tensor([-1e4, -1.0, 0.0, 1e4], dtype=torch.float32))
    assert torch.isfinite(ratio).all()
    assert (ratio > 0).all()
    assert ratio[1:3].tolist() == pytest.approx([math.exp(-1), 1.0])


@pytest.mark.parametrize("x", [-1e4, -800.0, 0.0, 800.0])
def test_logsigmoid_is_finite(x):
    value, grad = with_grad(logsigmoid, x)
    assert value == pytest.approx(min(x, 0.0) - math.log1p(math.exp(-abs(x))))
    assert math.isfinite(grad)


def test_choose_keeps_double_precision():
    picked = choose(torch.tensor([True, False]), 4 / 3, 1.05, torch.zeros(2, dtype=torch.float64))
    assert picked.tolist() == [4 / 3, 1.05]


def test_widen():
    assert widen(torch.zeros(1, dtype=torch.bfloat16)).dtype == torch.float32
    assert widen(torch.zeros(1, dtype=torch.float64)).dtype == torch.float64
