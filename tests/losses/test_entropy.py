from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strop.errors import ConfigError
from strop.losses import adapt_entropy_coef, entropy_bonus, entropy_threshold, top_entropy_mask

PROPERTY = settings(max_examples=40, deadline=None, derandomize=True)


@PROPERTY
@given(st.lists(st.floats(0, 10), min_size=1, max_size=30), st.floats(0.01, 0.99))
def test_threshold_is_the_quantile(entropies, share):
    entropy = torch.tensor(entropies, dtype=torch.float64)
    found = entropy_threshold(entropy, top_quantile=share)
    torch.testing.assert_close(found, torch.quantile(entropy, 1.0 - share))


def test_top_share_is_kept():
    entropy = torch.arange(10.0)
    assert top_entropy_mask(entropy, top_quantile=0.2).tolist() == [False] * 8 + [True] * 2
    assert top_entropy_mask(entropy, top_quantile=1.0).all()
    assert top_entropy_mask(torch.tensor([1.0, 2.0, 3.0]), top_quantile=0.5).tolist() == [False, True, True]
    assert top_entropy_mask(entropy[:0], top_quantile=0.2).shape == (0,)


def test_threshold_of_the_step_does_not_depend_on_micro_batches():
    entropy = torch.tensor([3.0, 0.1, 2.0, 0.2, 1.0, 0.3])
    threshold = entropy_threshold(entropy, top_quantile=0.5)
    parts = [top_entropy_mask(part, top_quantile=0.5, threshold=threshold) for part in entropy.split(2)]
    assert torch.equal(torch.cat(parts), top_entropy_mask(entropy, top_quantile=0.5))


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1])
def test_share_out_of_range(share):
    with pytest.raises(ConfigError, match="top_entropy_quantile"):
        entropy_threshold(torch.ones(3), top_quantile=share)


def test_bonus_raises_entropy_where_it_is_kept():
    entropy = torch.tensor([1.0, 2.0], requires_grad=True)
    entropy_bonus(entropy, keep=torch.tensor([True, False])).sum().backward()
    assert entropy.grad.tolist() == [-1.0, 0.0]
    assert entropy_bonus(entropy.detach()).tolist() == [-1.0, -2.0]


def test_coefficient_steers_towards_the_target():
    options = {"target": 0.2, "step": 0.01, "minimum": 0.0, "maximum": 0.05}
    assert adapt_entropy_coef(0.02, 0.1, **options) == pytest.approx(0.03)
    assert adapt_entropy_coef(0.02, 0.3, **options) == pytest.approx(0.01)
    assert adapt_entropy_coef(0.05, 0.1, **options) == 0.05
    assert adapt_entropy_coef(0.005, 0.3, **options) == 0.0
