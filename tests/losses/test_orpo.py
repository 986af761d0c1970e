from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strop.losses import log_odds_ratio, orpo_loss

PROPERTY = settings(max_examples=40, deadline=None, derandomize=True)
MEAN_LOGP = st.floats(-20, -1e-6)


def tensor(x: float, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.tensor([x], dtype=dtype, requires_grad=True)


@PROPERTY
@given(MEAN_LOGP)
def test_equal_probabilities(x):
    assert float(orpo_loss(tensor(x), tensor(x), beta=0.3).detach()) == pytest.approx(0.3 * math.log(2))


@PROPERTY
@given(MEAN_LOGP, MEAN_LOGP)
def test_odds_from_probabilities(w, r):
    def log_odds(x):
        return x - math.log(-math.expm1(x))

    found = float(log_odds_ratio(tensor(w), tensor(r)).detach())
    assert found == pytest.approx(log_odds(w) - log_odds(r), rel=1e-9, abs=1e-9)


@PROPERTY
@given(MEAN_LOGP, st.floats(1e-3, 1.0))
def test_log_odds_ratio_increases(x, step):
    assert log_odds_ratio(tensor(x * (1 - step * 0.5)), tensor(-1.0)) > log_odds_ratio(tensor(x), tensor(-1.0))


def test_small_probabilities_give_the_plain_difference():
    assert float(log_odds_ratio(tensor(-40.0), tensor(-50.0)).detach()) == pytest.approx(10.0, abs=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("x", [math.log1p(-1e-9), -1e-12, 0.0, -1e-7, -5e-8])
def test_finite_where_the_model_is_certain(x, dtype):
    for chosen, rejected in ((x, -1.0), (-1.0, x), (x, x)):
        w, r = tensor(chosen, dtype), tensor(rejected, dtype)
        value = orpo_loss(w, r)
        value.backward()
        assert torch.isfinite(value)
        assert torch.isfinite(w.grad)
        assert torch.isfinite(r.grad)


def test_gradient_grows_as_one_over_the_complement():
    w, r = tensor(math.log1p(-1e-9)), tensor(math.log1p(-1e-9))
    orpo_loss(w, r, beta=1.0).backward()
    assert float(w.grad) == pytest.approx(-0.5e9, rel=1e-6)
    assert float(r.grad) == pytest.approx(0.5e9, rel=1e-6)
