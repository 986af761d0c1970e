from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strop.errors import ConfigError
from strop.losses import gae, gae_flat, moments, policy_loss, token_rewards, token_rewards_flat, value_loss, whiten

PROPERTY = settings(max_examples=30, deadline=None, derandomize=True)
UNIT = st.floats(0, 1)


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gae_by_definition(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """A_t = sum_s (gamma lam)^(s-t) (rho_s + gamma V_{s+1} - V_s), written out."""
    following = [*values, 0.0][1:]
    errors = [r + gamma * v_next - v for r, v, v_next in zip(rewards, values, following, strict=True)]
    return [sum((gamma * lam) ** (s - t) * errors[s] for s in range(t, len(errors))) for t in range(len(errors))]


@PROPERTY
@given(st.lists(st.integers(0, 5), min_size=1, max_size=4), UNIT, UNIT, st.integers(0, 99))
def test_gae_against_its_definition(lengths, gamma, lam, seed):
    segment = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    rewards, values = random(sum(lengths), seed=seed), random(sum(lengths), seed=seed + 1)
    advantages, returns = gae_flat(rewards, values, segment, len(lengths), gamma=gamma, lam=lam)
    pieces = zip(rewards.split(lengths), values.split(lengths), strict=True)
    expected = [a for r, v in pieces for a in gae_by_definition(r.tolist(), v.tolist(), gamma, lam)]
    torch.testing.assert_close(advantages, torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(returns, advantages + values)


@PROPERTY
@given(st.integers(1, 6), UNIT, st.integers(0, 99))
def test_ends_of_lambda(length, gamma, seed):
    rewards, values = random(1, length, seed=seed), random(1, length, seed=seed + 1)
    mask = torch.ones(1, length)
    full, _ = gae(rewards, values, mask, gamma=gamma, lam=1.0)
    for t in range(length):
        discounted = sum(gamma ** (s - t) * rewards[0, s] for s in range(t, length))
        torch.testing.assert_close(full[0, t], discounted - values[0, t])
    one_step, _ = gae(rewards, values, mask, gamma=gamma, lam=0.0)
    following = torch.cat([values[:, 1:], torch.zeros(1, 1, dtype=torch.float64)], dim=1)
    torch.testing.assert_close(one_step, rewards + gamma * following - values)
    summed, _ = gae(rewards, 0 * values, mask, gamma=1.0, lam=1.0)
    torch.testing.assert_close(summed, rewards.flip(1).cumsum(1).flip(1))


@PROPERTY
@given(st.lists(st.lists(st.integers(0, 1), min_size=5, max_size=5), min_size=1, max_size=4), st.integers(0, 99))
def test_masked_rows_equal_flat_tokens(mask_rows, seed):
    mask = torch.tensor(mask_rows)
    keep, segment = mask.bool(), mask.nonzero()[:, 0]
    rewards, values = random(*mask.shape, seed=seed), random(*mask.shape, seed=seed + 1)
    scores = random(mask.shape[0], seed=seed + 2)
    poisoned = [x.masked_fill(~keep, torch.nan) for x in (rewards, values)]
    for found, flat in zip(
        gae(*poisoned, mask), gae_flat(rewards[keep], values[keep], segment, mask.shape[0]), strict=True
    ):
        assert torch.equal(found[keep], flat)
        assert (found[~keep] == 0).all()
    found = token_rewards(poisoned[0], scores, mask, kl_coef=0.1)
    flat = token_rewards_flat(rewards[keep], scores, segment, mask.shape[0], kl_coef=0.1)
    assert torch.equal(found[keep], flat)
    assert (found[~keep] == 0).all()


def test_the_score_is_on_the_last_real_token():
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 0]])
    rewards = token_rewards(torch.zeros(4, 4), torch.tensor([1.0, 2.0, 3.0, 4.0]), mask, kl_coef=0.5)
    assert rewards.tolist() == [[0, 0, 1, 0], [0, 0, 0, 2], [0, 0, 3, 0], [0, 0, 0, 0]]
    kl = torch.full((4, 4), 0.2)
    total = token_rewards(kl, torch.tensor([1.0, 2.0, 3.0, 4.0]), mask, kl_coef=0.5).sum(1)
    assert total.tolist() == pytest.approx([0.7, 1.6, 2.8, 0.0])


@pytest.mark.parametrize("options", [{"gamma": 1.1}, {"lam": -0.1}])
def test_gae_out_of_range(options):
    with pytest.raises(ConfigError, match="must lie in"):
        gae(torch.zeros(1, 1), torch.zeros(1, 1), torch.ones(1, 1), **options)


@PROPERTY
@given(st.integers(2, 20), st.integers(0, 99))
def test_whitened_moments(count, seed):
    mask = torch.ones(4, 10)
    mask.view(-1)[torch.randperm(40, generator=torch.Generator().manual_seed(seed))[count:]] = 0
    values = 3 * random(4, 10, seed=seed) + 5
    white = whiten(values, mask)
    valid = white[mask.bool()]
    assert float(valid.mean()) == pytest.approx(0.0, abs=1e-9)
    assert float(valid.std()) == pytest.approx(1.0, rel=1e-6)
    assert (white[mask == 0] == 0).all()
    kept = whiten(values, mask, shift_mean=False)[mask.bool()]
    torch.testing.assert_close(kept, valid + values[mask.bool()].mean())


def test_whitening_over_micro_batches_equals_the_whole():
    values = random(12, seed=3)
    statistics = sum(moments(part) for part in values.split([5, 4, 3]))
    parts = [whiten(part, statistics=statistics) for part in values.split([5, 4, 3])]
    torch.testing.assert_close(torch.cat(parts), whiten(values))


def test_whitening_degenerate_batches():
    assert whiten(torch.full((5,), 0.1)).abs().max() < 1e-6
    assert whiten(torch.tensor([3.0])).tolist() == [0.0]
    assert whiten(torch.zeros(0)).shape == (0,)


def test_value_gradient_is_zero_where_the_clipped_branch_wins():
    values = torch.tensor([1.0, 1.0, -1.0, 0.1], requires_grad=True)
    old, returns = torch.zeros(4), torch.tensor([2.0, -2.0, -0.5, 1.0])
    loss = value_loss(values, old, returns, clip=0.2)
    loss.sum().backward()
    # V moved 1.0 from 0: towards the return 2 (clipped error larger, no gradient), away from -2 (plain error larger).
    assert loss.tolist() == pytest.approx([0.5 * 1.8**2, 0.5 * 3.0**2, 0.5 * 0.5**2, 0.5 * 0.9**2])
    assert values.grad.tolist() == pytest.approx([0.0, 3.0, -0.5, -0.9])
    assert value_loss(values, old, returns, clip=None).tolist() == pytest.approx([0.5, 4.5, 0.125, 0.405])


def test_value_loss_ignores_what_padding_holds():
    mask = torch.tensor([[1, 0], [1, 1]])
    values = torch.tensor([[1.0, torch.nan], [0.5, 0.2]], requires_grad=True)
    loss = value_loss(values, torch.zeros(2, 2), torch.zeros(2, 2), mask)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(values.grad).all()
    assert float(values.grad[0, 1]) == 0.0


def test_first_epoch_gradient_is_the_advantage():
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    logps = random(2, 3, seed=4).requires_grad_()
    advantages = whiten(random(2, 3, seed=5), mask)
    loss = policy_loss(logps, logps.detach(), advantages, mask).sum() / mask.sum()
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-12)
    torch.testing.assert_close(logps.grad, -advantages / 5)
