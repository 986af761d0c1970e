"""What GRPO logs about its loss adds up to the loss."""

from __future__ import annotations

import pytest

from strop.errors import ConfigError
from strop.testing.cases import make_trainer


@pytest.mark.parametrize("loss_type", ["dapo", "dr_grpo", "luspo", "grpo"])
def test_policy_part_and_entropy_bonus_make_the_loss(loss_type, tmp_path):
    """Four micro-batches of a step: the logged parts have the step's denominators, as the loss has.

    The bonus is the mean entropy of a token, however the loss type adds up its policy term.
    """
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "num_generations": 2}
    options |= {"stop_token_ids": list(range(4, 200, 6)), "loss_type": loss_type, "entropy_coef": 0.3}
    trainer = make_trainer("grpo", tmp_path, max_steps=1, **options)
    trainer.train()
    logged = trainer.state.log_history[0]
    expected = logged["policy_loss"] - logged["entropy_coef"] * logged["entropy"]
    assert logged["entropy_coef"] == 0.3 and logged["loss"] == pytest.approx(expected, abs=1e-6)


def test_a_loss_that_divides_by_the_limit_needs_one(tmp_path):
    with pytest.raises(ConfigError, match="'dr_grpo' divides by max_completion_length"):
        make_trainer("grpo", tmp_path, loss_type="dr_grpo", max_completion_length=None, num_generations=2)
