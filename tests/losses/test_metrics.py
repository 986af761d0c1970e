from __future__ import annotations

import math

import pytest
import torch

from strop.losses import (
    class_metrics,
    clipped_tokens,
    kl_estimate,
    log_odds_ratio,
    orpo_metrics,
    policy_metrics,
    ppo_metrics,
    preference_metrics,
    sampler_metrics,
)
from strop.records import Mean


def value(mean: Mean) -> float:
    return float(mean.total) / float(mean.count)


def test_pairs_of_the_fixture(pairs):
    chosen = 0.5 * (pairs["chosen"] - pairs["ref_chosen"])
    rejected = 0.5 * (pairs["rejected"] - pairs["ref_rejected"])
    found = {name: value(mean) for name, mean in preference_metrics(chosen, rejected).items()}
    assert found == pytest.approx(
        {
            "rewards/chosen": 0.05,
            "rewards/rejected": 0.4666666667,
            "rewards/margins": -0.4166666667,
            "rewards/accuracies": 1 / 3,
        }
    )


def test_a_tie_is_not_accurate():
    assert value(preference_metrics(torch.ones(2), torch.ones(2))["rewards/accuracies"]) == 0.0


def test_metrics_add_up_over_micro_batches():
    chosen, rejected = torch.tensor([1.0, 2.0, 6.0]), torch.tensor([0.0, 3.0, 0.0])
    whole = preference_metrics(chosen, rejected)
    parts = [preference_metrics(chosen[:1], rejected[:1]), preference_metrics(chosen[1:], rejected[1:])]
    for name, mean in whole.items():
        total = sum(float(part[name].total) for part in parts) / sum(part[name].count for part in parts)
        assert total == pytest.approx(value(mean))


def test_classes_with_one_absent():
    found = class_metrics(torch.tensor([1.0, 3.0]), torch.tensor([1, 1]))
    assert value(found["rewards/chosen"]) == 2.0
    assert found["rewards/rejected"].count == 0


def test_orpo():
    ratio = log_odds_ratio(torch.tensor([-0.5, -1.0]), torch.tensor([-1.0, -0.5]))
    found = orpo_metrics(ratio)
    assert value(found["log_odds_chosen"]) == pytest.approx(0.0, abs=1e-6)
    assert value(found["log_odds_ratio"]) < 0


def test_clip_ratios_of_the_fixture(group):
    """The clip-higher row: half of completion 0, one token of six, is clipped from above, none from below."""
    advantages = torch.tensor([1.12, -0.8, -0.32])[group["segment"]]
    found = policy_metrics(
        group["logps"], group["old_logps"], advantages, group["segment"], 3, loss_type="dapo", epsilon_high=0.28
    )
    assert value(found["clip_ratio/high_mean"]) == pytest.approx(1 / 6)
    assert value(found["clip_ratio/low_mean"]) == 0.0
    assert value(found["clip_ratio/region_mean"]) == pytest.approx(1 / 6)
    wide = policy_metrics(group["logps"], group["old_logps"], advantages, group["segment"], 3, epsilon_high=0.4)
    assert value(wide["clip_ratio/high_mean"]) == 0.0
    ratio = (group["logps"] - group["old_logps"]).exp()
    low, high = clipped_tokens(ratio, advantages, epsilon_high=0.28)
    assert high.tolist() == [True, False, False, False, False, False]
    assert not low.any()


def test_clip_ratio_of_completions(group):
    advantages = torch.tensor([1.0, -1.0, 1.0])[group["segment"]]
    found = policy_metrics(
        group["logps"], group["old_logps"], advantages, group["segment"], 4, importance_sampling_level="sequence"
    )
    assert value(found["clip_ratio/high_mean"]) == pytest.approx(
        1 / 3
    )  # ratios 1.105, 1.017, 1.649; completion 3 is empty


def test_cispo_counts_every_capped_token(group):
    for sign in (1.0, -1.0):
        found = policy_metrics(
            group["logps"], group["old_logps"], sign * torch.ones(6), group["segment"], 3, loss_type="cispo"
        )
        assert value(found["cispo_clip_ratio"]) == pytest.approx(0.5)


def test_kl_is_what_the_loss_adds(group):
    arguments = group["logps"], group["old_logps"], torch.zeros(6), group["segment"], 3
    kl = kl_estimate(group["logps"], group["ref_logps"])
    ratio = (group["logps"] - group["old_logps"]).exp()
    plain = policy_metrics(*arguments, ref_logps=group["ref_logps"])["kl"]
    corrected = policy_metrics(*arguments, ref_logps=group["ref_logps"], use_bias_correction_kl=True)["kl"]
    assert value(plain) == pytest.approx(float(kl.mean()))
    assert value(corrected) == pytest.approx(float((kl * ratio).mean()))
    assert "kl" not in policy_metrics(*arguments)


def test_sampler(group):
    sampler = group["sampler_logps"].clone()
    sampler[0] = math.nan
    found = sampler_metrics(group["old_logps"], sampler, group["segment"], 3, importance_sampling_mode="token_truncate")
    assert value(found["sampling/sampling_logp_difference/mean"]) == pytest.approx((0 + 0.2 + 1.2 + 0 + 0.1) / 5)
    weights = [1, 1, math.exp(-0.2), 3.0, 1, math.exp(0.1)]
    assert value(found["sampling/importance_sampling_ratio/mean"]) == pytest.approx(sum(weights) / 6)


def test_ppo_where_nothing_moved():
    zeros = torch.zeros(4)
    found = ppo_metrics(zeros, zeros, torch.ones(4), zeros, zeros, torch.ones(4))
    assert {name: value(mean) for name, mean in found.items()} == {
        "policy/approxkl_avg": 0.0,
        "policy/clipfrac_avg": 0.0,
        "val/clipfrac_avg": 0.0,
        "val/ratio": 1.0,
    }


def test_ppo_value_clipping_is_counted():
    values, old, returns = torch.tensor([1.0, 0.1]), torch.zeros(2), torch.tensor([2.0, 2.0])
    found = ppo_metrics(torch.zeros(2), torch.zeros(2), torch.ones(2), values, old, returns)
    assert value(found["val/clipfrac_avg"]) == 0.5
