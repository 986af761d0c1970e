from __future__ import annotations

import math

import pytest
import torch

from strop.errors import ConfigError
from strop.losses import completion_weights, reinforce_loss, rloo_loss, sampler_weights


def test_ratio_is_that_of_the_whole_completion():
    logps, old = torch.tensor([-10.0, -10.0]), torch.tensor([-10.1, -10.5])
    loss = rloo_loss(logps, old, torch.tensor([2.0, 2.0]))
    assert loss.tolist() == pytest.approx([-2 * math.exp(0.1), -2 * 1.2], rel=1e-5)


def test_on_policy_gradient_is_reinforce():
    logps = torch.tensor([-3.0, -40.0, -7.0], requires_grad=True)
    advantages = torch.tensor([0.5, -1.0, 0.5], requires_grad=True)
    rloo_loss(logps, None, advantages).sum().backward()
    assert logps.grad.tolist() == [-0.5, 1.0, -0.5]
    assert advantages.grad is None
    logps.grad = None
    reinforce_loss(logps, advantages).sum().backward()
    assert logps.grad.tolist() == [-0.5, 1.0, -0.5]
    assert advantages.grad is None


def test_clipped_completions_have_no_gradient():
    logps = torch.tensor([0.5, -0.5], requires_grad=True)
    rloo_loss(logps, torch.zeros(2), torch.tensor([1.0, -1.0]), epsilon=0.2, epsilon_high=0.3).sum().backward()
    assert logps.grad.tolist() == [0.0, 0.0]


def test_weights_multiply_and_have_no_gradient():
    logps = torch.tensor([-3.0, -40.0], requires_grad=True)
    weights = torch.tensor([2.0, 0.0], requires_grad=True)
    rloo_loss(logps, None, torch.tensor([0.5, -1.0]), weights=weights).sum().backward()
    assert logps.grad.tolist() == [-1.0, 0.0] and weights.grad is None


@pytest.mark.parametrize("mode", ["sequence_truncate", "sequence_mask"])
def test_the_weight_of_a_completion_is_that_of_its_tokens(mode):
    """Of one without tokens, and where the sampler said nothing, it is 1."""
    old = torch.tensor([-1.0, -2.0, -0.5, -3.0, -1.0], dtype=torch.float64)
    sampler = torch.tensor([-1.5, -2.2, -0.1, -5.5, math.nan], dtype=torch.float64)
    segment = torch.tensor([0, 0, 1, 2, 4])
    weights = completion_weights(old, sampler, segment, 5, mode=mode, clip_max=3.0)
    assert weights.tolist() == pytest.approx(
        [math.exp(0.7), math.exp(-0.4), 3.0 if mode == "sequence_truncate" else 0.0, 1.0, 1.0]
    )
    assert weights[segment].equal(sampler_weights(old, sampler, segment, 5, mode=mode, clip_max=3.0))


def test_negative_epsilon():
    with pytest.raises(ConfigError, match="epsilon"):
        rloo_loss(torch.zeros(1), None, torch.ones(1), epsilon=-1.0)
