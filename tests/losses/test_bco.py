from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strop.errors import ConfigError
from strop.losses import (
    BalancedMean,
    ClassSums,
    PooledMean,
    bco_loss,
    class_sums,
    cumulative_pooled,
    density_ratio_weights,
    discriminator_loss,
    dpo_loss,
    ema_balanced,
)

PROPERTY = settings(max_examples=40, deadline=None, derandomize=True)
NUMBER = st.floats(-6, 6)


def t(*x: float) -> torch.Tensor:
    return torch.tensor(x, dtype=torch.float64)


@PROPERTY
@given(NUMBER, NUMBER, NUMBER)
def test_upper_bound_of_dpo(reward_w, reward_l, delta):
    """BCE of both completions is at least the DPO loss of the pair, for every shift."""
    both = bco_loss(t(reward_w, reward_l), torch.tensor([1, 0]), delta).sum()
    dpo = dpo_loss(t(reward_w), t(reward_l), t(0.0), t(0.0), beta=1.0)
    assert float(both) >= float(dpo) - 1e-12


@PROPERTY
@given(NUMBER, NUMBER, NUMBER)
def test_shifting_rewards_and_delta_together(reward, delta, k):
    for label in (True, False):
        label = torch.tensor([label])
        torch.testing.assert_close(bco_loss(t(reward + k), label, delta + k), bco_loss(t(reward), label, delta))


@PROPERTY
@given(NUMBER, NUMBER)
def test_without_a_shift_pairs_give_bco_pair(u_w, u_l):
    mean = bco_loss(0.3 * t(u_w, u_l), torch.tensor([1, 0]), 0.0).mean()
    pair = dpo_loss(t(u_w), t(u_l), t(0.0), t(0.0), beta=0.3, loss_type="bco_pair")
    torch.testing.assert_close(2 * mean, pair[0])


def test_first_step_and_gradients():
    rewards = torch.zeros(2, requires_grad=True)
    delta = torch.tensor(0.0, requires_grad=True)
    loss = bco_loss(rewards, torch.tensor([True, False]), delta, weights=torch.tensor([9.0, 3.0]))
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([math.log(2), 3 * math.log(2)])
    assert rewards.grad.tolist() == pytest.approx([-0.5, 1.5])
    assert delta.grad is None


def test_discriminator_is_bco_without_a_shift():
    u, labels = t(0.3, -0.7, 800.0, -800.0), torch.tensor([1, 0, 0, 1])
    torch.testing.assert_close(discriminator_loss(u, labels, beta=0.5), bco_loss(0.5 * u, labels, 0.0))
    assert torch.isfinite(discriminator_loss(u.float(), labels)).all()


STEPS = st.lists(st.lists(st.tuples(NUMBER, st.booleans()), max_size=4), min_size=1, max_size=4)


def add(a: ClassSums, b: ClassSums) -> ClassSums:
    return ClassSums(*(x + y for x, y in zip(a, b, strict=True)))


@PROPERTY
@given(STEPS)
def test_delta_does_not_depend_on_how_a_step_was_split(steps):
    whole, parts = BalancedMean(), BalancedMean()
    pooled, pooled_parts = PooledMean(), PooledMean()
    for rows in steps:
        rewards, labels = t(*[r for r, _ in rows]), torch.tensor([d for _, d in rows], dtype=torch.bool)
        once = class_sums(rewards, labels)
        split = ClassSums()
        for i in range(len(rows) - 1, -1, -1):
            split = add(split, class_sums(rewards[i : i + 1], labels[i : i + 1]))
        whole, parts = ema_balanced(whole, once, decay=0.5), ema_balanced(parts, split, decay=0.5)
        pooled, pooled_parts = cumulative_pooled(pooled, once), cumulative_pooled(pooled_parts, split)
    assert float(parts.delta) == pytest.approx(float(whole.delta), abs=1e-12)
    assert float(pooled_parts.delta) == pytest.approx(float(pooled.delta), abs=1e-12)
    everything = [r for rows in steps for r, _ in rows]
    assert float(pooled.delta) == pytest.approx(sum(everything) / max(len(everything), 1), abs=1e-12)


def test_an_absent_class_keeps_its_mean():
    state = ema_balanced(BalancedMean(), ClassSums(4.0, 2.0, 0.0, 0.0), decay=0.9)
    assert state == BalancedMean(2.0, None)
    assert state.delta == 1.0
    state = ema_balanced(state, ClassSums(0.0, 0.0, -3.0, 1.0), decay=0.9)
    assert state == BalancedMean(2.0, -3.0)
    state = ema_balanced(state, ClassSums(), decay=0.9)
    assert state == BalancedMean(2.0, -3.0)
    assert state.delta == -0.5


def test_balanced_delta_ignores_the_share_of_classes():
    few = ema_balanced(BalancedMean(), ClassSums(1.0, 1.0, -1.0, 1.0))
    many = ema_balanced(BalancedMean(), ClassSums(1.0, 1.0, -100.0, 100.0))
    assert few.delta == many.delta == 0.0
    assert cumulative_pooled(PooledMean(), ClassSums(1.0, 1.0, -100.0, 100.0)).delta < -0.9


def test_decay_out_of_range():
    with pytest.raises(ConfigError, match="decay"):
        ema_balanced(BalancedMean(), ClassSums(), decay=1.0)


def test_density_ratio_is_finite_and_bounded():
    weights = density_ratio_weights(t(0.0, 0.5, 1.0), min_ratio=0.2, max_ratio=7.0)
    assert weights.tolist() == pytest.approx([0.2, 1.0, 7.0], rel=1e-6)
