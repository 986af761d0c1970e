from __future__ import annotations

import math

import pytest
import torch

from strop.errors import ConfigError
from strop.losses import reinforce_loss, rloo_loss


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


def test_negative_epsilon():
    with pytest.raises(ConfigError, match="epsilon"):
        rloo_loss(torch.zeros(1), None, torch.ones(1), epsilon=-1.0)
