from __future__ import annotations

import math

import pytest
import torch

from strop.errors import ConfigError
from strop.losses import contrastive_hidden_loss, pool_hidden


def states(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_pair_form_is_confined_at_temperature_one():
    best = contrastive_hidden_loss(torch.ones(1, 3), -torch.ones(1, 3), torch.ones(1, 3))
    worst = contrastive_hidden_loss(-torch.ones(1, 3), torch.ones(1, 3), torch.ones(1, 3))
    assert float(best) == pytest.approx(math.log1p(math.exp(-2)), rel=1e-6)
    assert float(worst) == pytest.approx(math.log1p(math.exp(2)), rel=1e-6)


def test_scale_of_states_does_not_matter():
    w, r, anchor = (states(4, 5, seed=i) for i in range(3))
    torch.testing.assert_close(
        contrastive_hidden_loss(3 * w, 0.1 * r, 7 * anchor), contrastive_hidden_loss(w, r, anchor)
    )


def test_in_batch_equals_the_pair_form_for_one_pair():
    w, r, anchor = (states(1, 5, seed=i) for i in range(3))
    pair = contrastive_hidden_loss(w, r, anchor, temperature=0.3)
    torch.testing.assert_close(contrastive_hidden_loss(w, r, anchor, temperature=0.3, negatives="in_batch"), pair)


def test_in_batch_counts_every_completion():
    w, r, anchor = (states(3, 5, seed=i) for i in range(3))
    candidates = torch.cat([w, r])
    expected = []
    for i in range(3):
        sims = torch.cosine_similarity(candidates, anchor[i][None]) / 0.5
        expected.append(sims.exp().sum().log() - sims[i])
    found = contrastive_hidden_loss(w, r, anchor, temperature=0.5, negatives="in_batch")
    torch.testing.assert_close(found, torch.stack(expected))


def test_no_gradient_to_the_anchor_and_none_from_a_zero_state():
    w, anchor = torch.zeros(1, 3, requires_grad=True), torch.ones(1, 3, requires_grad=True)
    contrastive_hidden_loss(w, torch.ones(1, 3), anchor).sum().backward()
    assert anchor.grad is None
    assert torch.isfinite(w.grad).all()


def test_pooling_happens_in_float32():
    hidden = torch.tensor([[256.0], [1.0], [1.0]], dtype=torch.bfloat16)
    pooled = pool_hidden(hidden, torch.tensor([0, 0, 0]), 1)
    assert pooled.dtype == torch.float32
    assert float(pooled) == pytest.approx(86.0)


def test_wrong_options():
    one = torch.ones(1, 2)
    with pytest.raises(ConfigError, match="negatives"):
        contrastive_hidden_loss(one, one, one, negatives="batch")
    with pytest.raises(ConfigError, match="temperature"):
        contrastive_hidden_loss(one, one, one, temperature=0.0)
