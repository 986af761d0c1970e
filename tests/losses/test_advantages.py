from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strop.errors import ConfigError, RewardError
from strop.losses import (
    group_advantages,
    leave_one_out,
    missing_eos_penalty,
    multi_reward_advantages,
    names,
    normalize_advantages,
    rloo_rewards,
    weighted_rewards,
)

PROPERTY = settings(max_examples=40, deadline=None, derandomize=True)
GROUP = st.lists(st.floats(-5, 5), min_size=4, max_size=4)
NAN = math.nan


def t(*x: float) -> torch.Tensor:
    return torch.tensor(x, dtype=torch.float64)


@pytest.mark.parametrize("scale", names.SCALE_REWARDS)
@pytest.mark.parametrize("value", [0.1, 0.7, 1 / 3, 1e9 + 0.1, -2.2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_identical_rewards_give_exactly_zero(value, dtype, scale):
    for size in range(1, 17):
        same = torch.full((size,), value, dtype=dtype)
        others = torch.arange(size, dtype=dtype)
        found = group_advantages(torch.cat([same, others]), num_generations=size, scale=scale, eps=1e-12)
        assert (found[:size] == 0).all(), size
        if size > 1:
            assert (leave_one_out(same, num_generations=size) == 0).all()


@PROPERTY
@given(GROUP, GROUP, st.floats(0.1, 10), st.floats(-10, 10))
def test_group_advantages(first, second, slope, offset):
    rewards = t(*first, *second)
    for scale in names.SCALE_REWARDS:
        found = group_advantages(rewards, num_generations=4, scale=scale).reshape(2, 4)
        assert found.sum(1).abs().max() < 1e-9
        order = torch.tensor([2, 0, 3, 1])
        permuted = group_advantages(rewards.reshape(2, 4)[:, order].reshape(-1), num_generations=4, scale=scale)
        torch.testing.assert_close(permuted.reshape(2, 4), found[:, order])
    spread = rewards.reshape(2, 4).std(1).min()
    if spread > 1e-3:
        exact = group_advantages(rewards, num_generations=4, eps=0.0)
        moved = group_advantages(slope * rewards + offset, num_generations=4, eps=0.0)
        torch.testing.assert_close(moved, exact, rtol=1e-6, atol=1e-6)


def test_two_completions_differ_by_sign_only():
    for gap in (1e-3, 1.0, 1e3):
        found = group_advantages(t(gap, 0.0), num_generations=2, eps=0.0)
        assert found.tolist() == pytest.approx([math.sqrt(0.5), -math.sqrt(0.5)])


def test_scales():
    rewards = t(1, 3, 0, 0)
    assert group_advantages(rewards, num_generations=2, scale="none").tolist() == [-1, 1, 0, 0]
    std = float(rewards.std())
    batch = group_advantages(rewards, num_generations=2, scale="batch")
    assert batch.tolist() == pytest.approx([-1 / (std + 1e-4), 1 / (std + 1e-4), 0, 0])
    group = group_advantages(rewards, num_generations=2)
    assert group.tolist() == pytest.approx([-1 / (math.sqrt(2) + 1e-4), 1 / (math.sqrt(2) + 1e-4), 0, 0])


@pytest.mark.parametrize("scale", names.SCALE_REWARDS)
def test_abstentions_are_left_out(scale):
    listed = group_advantages([1.0, None, 0.0, None, None, None], num_generations=3, scale=scale)
    tensor = group_advantages(t(1.0, NAN, 0.0, NAN, NAN, NAN), num_generations=3, scale=scale)
    torch.testing.assert_close(listed.double(), tensor, rtol=1e-6, atol=1e-6)
    without = group_advantages(t(1.0, 0.0), num_generations=2, scale=scale)
    torch.testing.assert_close(tensor[[0, 2]], without)
    assert (tensor[[1, 3, 4, 5]] == 0).all()
    alone = group_advantages([2.0, None], num_generations=2, scale=scale)
    assert alone.tolist() == [0.0, 0.0]


def test_dtype_is_that_of_the_rewards():
    assert group_advantages(torch.tensor([1, 2]), num_generations=2).dtype == torch.get_default_dtype()
    assert group_advantages(torch.tensor([1.0, 2.0]), num_generations=2).dtype == torch.float32
    assert leave_one_out([1.0, 2], num_generations=2).dtype == torch.get_default_dtype()


@PROPERTY
@given(GROUP, st.floats(-10, 10))
def test_leave_one_out(rewards, offset):
    found = leave_one_out(t(*rewards), num_generations=4)
    for i, reward in enumerate(rewards):
        others = [r for j, r in enumerate(rewards) if j != i]
        assert float(found[i]) == pytest.approx(reward - sum(others) / 3, abs=1e-9)
    assert float(found.sum()) == pytest.approx(0.0, abs=1e-9)
    torch.testing.assert_close(leave_one_out(t(*rewards) + offset, num_generations=4), found)
    pair = leave_one_out(t(*rewards[:2]), num_generations=2)
    assert pair.tolist() == pytest.approx([rewards[0] - rewards[1], rewards[1] - rewards[0]])


def test_leave_one_out_with_abstentions():
    found = leave_one_out(t(1.0, NAN, 0.0, 4.0), num_generations=4)
    assert found.tolist() == pytest.approx([-1.0, 0.0, -2.5, 3.5])
    assert leave_one_out([1.0, None], num_generations=2).tolist() == [0.0, 0.0]


def test_wrong_groups():
    with pytest.raises(ConfigError, match="set it to 2 or more"):
        leave_one_out(t(1.0), num_generations=1)
    for size in (2, 0, 4):
        with pytest.raises(ConfigError, match="whole groups"):
            group_advantages(t(1.0, 2.0, 3.0), num_generations=size)
    with pytest.raises(ConfigError, match="scale_rewards is 'std'"):
        group_advantages(t(1.0, 2.0), num_generations=2, scale="std")


def test_infinite_rewards_are_refused():
    with pytest.raises(RewardError, match="Reward 1 is inf"):
        group_advantages([0.0, math.inf], num_generations=2)


def test_clip_comes_before_the_kl():
    rewards = rloo_rewards(t(5.0, -5.0), t(-1.0, -1.0), t(-3.0, 1.0), beta=0.5, clip_range=(-2.0, 2.0))
    assert rewards.tolist() == [1.0, -1.0]
    logps = t(-1.0).requires_grad_()
    assert not rloo_rewards(t(1.0), logps, t(-1.0), beta=0.5).requires_grad


def test_normalized_advantages():
    found = normalize_advantages(t(1.0, 2.0, 6.0))
    std = float(t(1.0, 2.0, 6.0).std())
    assert found.tolist() == pytest.approx([(x - 3) / (std + 1e-4) for x in (1, 2, 6)])
    assert normalize_advantages(torch.full((7,), 0.1)).tolist() == [0.0] * 7


def test_weighted_rewards():
    rewards = torch.tensor([[1.0, NAN], [2.0, 3.0], [NAN, NAN]])
    found = weighted_rewards(rewards, torch.tensor([1.0, 0.5]))
    assert found[:2].tolist() == [1.0, 3.5]
    assert math.isnan(float(found[2]))


def test_sum_then_normalize_is_the_group_advantage_of_the_sum():
    rewards = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.5, NAN], [NAN, NAN]], dtype=torch.float64)
    weights = t(1.0, 2.0)
    found = multi_reward_advantages(rewards, weights, num_generations=4, scale="batch")
    torch.testing.assert_close(
        found, group_advantages([1.0, 4.0, 0.5, None], num_generations=4, scale="batch").double()
    )


def test_normalize_then_sum_gives_each_reward_the_same_say():
    first, second = t(0.0, 1.0, 0.0, 1.0), t(0.0, 0.0, 500.0, 500.0)
    found = multi_reward_advantages(
        torch.stack([first, second], dim=1), t(1.0, 1.0), num_generations=4, aggregation="normalize_then_sum", eps=0.0
    )
    summed = sum(group_advantages(r, num_generations=4, eps=0.0) for r in (first, second))
    torch.testing.assert_close(found, summed / summed.std())
    assert found[1] == pytest.approx(float(found[2]), abs=1e-12)
    drowned = multi_reward_advantages(torch.stack([first, second], dim=1), t(1.0, 1.0), num_generations=4)
    assert drowned[1] < 0 < drowned[2]


def test_normalize_then_sum_keeps_exact_zeros():
    rewards = torch.tensor([[0.1, 0.7]] * 4 + [[0.0, 1.0], [1.0, 0.3], [0.0, NAN], [2.0, 0.0]])
    found = multi_reward_advantages(rewards, t(1.0, 0.3), num_generations=4, aggregation="normalize_then_sum")
    assert (found[:4] == 0).all()
    assert (found[4:] != 0).all()


def test_wrong_aggregation():
    rewards = torch.zeros(2, 1)
    with pytest.raises(ConfigError, match="multi_objective_aggregation is 'sum'"):
        multi_reward_advantages(rewards, t(1.0), num_generations=2, aggregation="sum")
    with pytest.raises(ConfigError, match="scale_rewards is 'none'"):
        multi_reward_advantages(rewards, t(1.0), num_generations=2, aggregation="normalize_then_sum", scale="none")


def test_missing_eos_penalty():
    scores, has_eos = t(0.3, 0.1), torch.tensor([0, 1])
    assert missing_eos_penalty(scores, has_eos, penalty=1.0).tolist() == pytest.approx([-0.7, 0.1])
    assert missing_eos_penalty(scores, has_eos, penalty=None) is scores
