"""The loops by hand learn, and step as the trainers do."""

from __future__ import annotations

import pytest
import torch
from examples.loops import dpo, grpo

from strop.losses import dpo_loss


def test_dpo_by_hand_starts_at_ln_2_and_learns() -> None:
    losses = dpo.main()
    assert losses[0] == pytest.approx(float(dpo_loss(*torch.zeros(4, 1), beta=dpo.BETA)), abs=1e-6)
    assert losses[-1] < 0.5 * losses[0]


def test_grpo_by_hand_makes_its_reward_rise() -> None:
    means = grpo.main()
    assert sum(means[-5:]) / 5 > sum(means[:5]) / 5 + 0.2
