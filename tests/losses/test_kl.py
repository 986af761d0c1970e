"""Values of the KL estimators; what they do as losses is proved in test_enumeration.py."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strop.errors import ConfigError
from strop.losses import kl_estimate

PROPERTY = settings(max_examples=40, deadline=None, derandomize=True)


@PROPERTY
@given(st.floats(-15, 15))
def test_formulas(d):
    logps, ref = torch.tensor([d - 2.0], dtype=torch.float64), torch.tensor([-2.0], dtype=torch.float64)
    d = float(logps - ref)
    assert float(kl_estimate(logps, ref, estimator="k1")) == d
    assert float(kl_estimate(logps, ref, estimator="k2")) == pytest.approx(d * d / 2)
    k3 = float(kl_estimate(logps, ref, estimator="k3"))
    assert k3 == pytest.approx(math.exp(-d) - 1 + d, rel=1e-9, abs=1e-12)
    assert k3 >= 0


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_zero_where_the_policies_agree(estimator):
    logps = torch.tensor([-1.5], requires_grad=True)
    value = kl_estimate(logps, logps, estimator=estimator)
    value.backward()
    assert float(value.detach()) == 0.0
    assert float(logps.grad) == (1.0 if estimator == "k1" else 0.0)


@pytest.mark.parametrize("d", [-500.0, 500.0])
def test_k3_is_finite_in_float32(d):
    logps = torch.tensor([d], requires_grad=True)
    value = kl_estimate(logps, torch.zeros(1))
    value.backward()
    assert torch.isfinite(value).all()
    assert torch.isfinite(logps.grad).all()


def test_unknown_estimator():
    with pytest.raises(ConfigError, match="kl_estimator is 'k4'"):
        kl_estimate(torch.zeros(1), torch.zeros(1), estimator="k4")
