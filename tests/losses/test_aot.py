from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strop.errors import ConfigError
from strop.losses import aot_loss, aot_partners, dpo_loss


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(1, 9), st.integers(1, 4), st.sampled_from(["aot", "aot_unpaired"]), st.sampled_from([0.0, 0.2]))
def test_micro_batches_add_up_to_the_whole_step(count, size, loss_type, eps):
    generator = torch.Generator().manual_seed(count)
    columns = [torch.randn(count, generator=generator, dtype=torch.float64) for _ in range(4)]
    options = {"beta": 0.6, "loss_type": loss_type, "label_smoothing": eps}

    whole = [x.clone().requires_grad_() for x in columns[:2]]
    expected = dpo_loss(*whole, *columns[2:], **options).sum()
    expected.backward()

    partners = aot_partners(*columns, loss_type=loss_type)
    parts = [x.clone().requires_grad_() for x in columns[:2]]
    total = torch.zeros((), dtype=torch.float64)
    for start in range(0, count, size):
        rows = slice(start, start + size)
        own = type(partners)(*(x[rows] for x in partners))
        loss = aot_loss(parts[0][rows], parts[1][rows], columns[2][rows], columns[3][rows], own, **options).sum()
        loss.backward()
        total = total + loss.detach()
    torch.testing.assert_close(total, expected.detach())
    for part, full in zip(parts, whole, strict=True):
        torch.testing.assert_close(part.grad, full.grad)


def test_partners_carry_no_gradient():
    leaf = torch.tensor([1.0, 2.0], requires_grad=True)
    for loss_type in ("aot", "aot_unpaired"):
        partners = aot_partners(leaf, leaf * 2, leaf * 3, leaf, loss_type=loss_type)
        assert not any(x.requires_grad for x in partners)


def test_wrong_options():
    one = torch.zeros(1)
    with pytest.raises(ConfigError, match="loss_type is 'sigmoid'"):
        aot_partners(one, one, one, one, loss_type="sigmoid")
    partners = aot_partners(one, one, one, one)
    with pytest.raises(ConfigError, match="label_smoothing"):
        aot_loss(one, one, one, one, partners, label_smoothing=0.7)
