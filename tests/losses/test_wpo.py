from __future__ import annotations

import torch

from strop.losses import wpo_alignment, wpo_weights


def test_alignment_is_a_mean_over_own_tokens():
    logps = torch.tensor([-1.0, -3.0, -0.5])
    square = torch.tensor([-0.5, -1.0, -0.2])
    found = wpo_alignment(logps, square, torch.tensor([0, 0, 2]), 3)
    torch.testing.assert_close(found, torch.tensor([-1.25, 0.0, -0.3]))


def test_alignment_with_a_uniform_policy_is_zero():
    logps = torch.zeros(5).log_softmax(0)
    square = (2 * logps).logsumexp(0).expand(5)
    torch.testing.assert_close(wpo_alignment(logps, square, torch.zeros(5, dtype=torch.int64), 1), torch.zeros(1))


def test_weights_carry_no_gradient_and_are_capped():
    logps = torch.tensor([0.5, -1.0], requires_grad=True)
    alignment = wpo_alignment(logps, torch.zeros(2), torch.tensor([0, 1]), 2)
    capped, free = wpo_weights(alignment, alignment), wpo_weights(alignment, alignment, clamp=False)
    assert not capped.requires_grad
    torch.testing.assert_close(capped, torch.tensor([1.0, torch.e**-2]))
    torch.testing.assert_close(free, torch.tensor([torch.e, torch.e**-2]))
