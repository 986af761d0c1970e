from __future__ import annotations

import math

import pytest
import torch

from strop.losses import (
    class_metrics,
    clipped_tokens,
    dpo_loss,
    exponential_metrics,
    kl_estimate,
    log_odds_ratio,
    mean_of,
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_share_of_pairs_beyond_the_bound_of_the_exponential(dtype):
    gaps = torch.tensor([-40.0, -30.5, -29.5, 0.0, 40.0], dtype=dtype)
    zeros = torch.zeros_like(gaps)
    losses = dpo_loss(gaps, zeros, zeros, zeros, beta=1.0, loss_type="exponential")
    assert value(exponential_metrics(losses)["exponent_clamped_ratio"]) == pytest.approx(2 / 5)


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


def test_extremes_are_shares_of_a_completion(group):
    """Half of completion 0 is clipped from above; of completion 1, one token of three from below."""
    advantages = torch.tensor([1.12, -0.8, -0.32])[group["segment"]]
    arguments = group["logps"], group["old_logps"], advantages, group["segment"], 4
    found = policy_metrics(*arguments, epsilon=0.15, epsilon_high=0.28)
    assert found["clip_ratio/high_max"].value == pytest.approx(0.5) and found["clip_ratio/high_max"].largest
    assert found["clip_ratio/low_min"].value == 0.0 and not found["clip_ratio/low_min"].largest
    only = slice(2, 5)  # completion 1 by itself: the least share is not 0, and an empty completion does not count
    one = policy_metrics(*(a[only] for a in arguments[:3]), torch.zeros(3, dtype=torch.long), 2, epsilon=0.15)
    assert one["clip_ratio/low_min"].value == pytest.approx(1 / 3)


def test_losses_that_clip_nothing_report_no_clipping(group):
    arguments = group["logps"], group["old_logps"], torch.ones(6), group["segment"], 3
    for loss_type in ("cispo", "sapo", "vespo"):
        assert not [name for name in policy_metrics(*arguments, loss_type=loss_type) if name.startswith("clip_ratio")]


def test_vespo_gate_is_a_mean_over_completions(group):
    arguments = group["logps"], None, torch.ones(6), group["segment"], 4
    assert value(policy_metrics(*arguments, loss_type="vespo")["vespo/phi_seq_mean"]) == pytest.approx(1.0)
    ratios = [0.2, 0.05, 0.5]  # log-ratios of completions 0 to 2; completion 3 is empty
    gates = [math.exp(2 * w - 3 * math.expm1(w)) for w in ratios]
    found = policy_metrics(group["logps"], group["old_logps"], *arguments[2:], loss_type="vespo")
    assert value(found["vespo/phi_seq_mean"]) == pytest.approx(sum(gates) / 3)


def test_cispo_counts_every_capped_token(group):
    for sign in (1.0, -1.0):
        found = policy_metrics(
            group["logps"], group["old_logps"], sign * torch.ones(6), group["segment"], 3, loss_type="cispo"
        )
        assert value(found["cispo_clip_ratio"]) == pytest.approx(0.5)
    options = {"loss_type": "cispo", "epsilon_high": 1.25}
    arguments = group["logps"], group["old_logps"], torch.ones(6), group["segment"], 3
    assert value(policy_metrics(*arguments, **options)["cispo_clip_ratio"]) == 0.0
    assert value(policy_metrics(*arguments, **options, cispo_cap="absolute")["cispo_clip_ratio"]) == pytest.approx(0.5)


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
    """Unknown log-probs count nowhere. Without a correction the ratio of each token, else the correction's weight."""
    sampler = group["sampler_logps"].clone()
    sampler[0] = math.nan
    arguments = group["old_logps"], sampler, group["segment"], 3
    gaps = [0, 0.2, 1.2, 0, 0.1]
    for mode, weights in {
        None: [1, math.exp(-0.2), math.exp(1.2), 1, math.exp(0.1)],
        "token_truncate": [1, math.exp(-0.2), 3.0, 1, math.exp(0.1)],
        "sequence_mask": [1, math.exp(1.0), math.exp(1.0), math.exp(1.0), math.exp(0.1)],
    }.items():
        found = sampler_metrics(*arguments, mode=mode)
        assert value(found["sampling/sampling_logp_difference/mean"]) == pytest.approx(sum(gaps) / 5)
        assert found["sampling/sampling_logp_difference/max"].value == pytest.approx(1.2)
        assert value(found["sampling/importance_sampling_ratio/mean"]) == pytest.approx(sum(weights) / 5)
        extremes = [found[f"sampling/importance_sampling_ratio/{name}"] for name in ("min", "max")]
        assert [float(e.value) for e in extremes] == pytest.approx([min(weights), max(weights)])
        assert [e.largest for e in extremes] == [False, True]
    nothing = sampler_metrics(group["old_logps"], torch.full((6,), math.nan), group["segment"], 3).values()
    assert all(float(each.count) == 0 if isinstance(each, Mean) else math.isinf(each.value) for each in nothing)


def test_ppo_where_nothing_moved():
    zeros = torch.zeros(4)
    found = ppo_metrics(zeros, zeros, torch.ones(4), zeros, zeros, torch.ones(4))
    assert {name: value(mean) for name, mean in found.items()} == {
        "policy/approxkl_avg": 0.0,
        "policy/clipfrac_avg": 0.0,
        "val/clipfrac_avg": 0.0,
        "val/ratio": 1.0,
        "val/ratio_square": 1.0,
    }


def test_ppo_value_clipping_is_counted():
    values, old, returns = torch.tensor([1.0, 0.1]), torch.zeros(2), torch.tensor([2.0, 2.0])
    found = ppo_metrics(torch.zeros(2), torch.zeros(2), torch.ones(2), values, old, returns)
    assert value(found["val/clipfrac_avg"]) == 0.5


def test_rounding_is_no_clipped_value():
    torch.manual_seed(0)
    values, old = (0.09 * (2 * torch.rand(1000, dtype=torch.float64) - 1) for _ in range(2))  # less than 0.2 apart
    returns = torch.randn(1000, dtype=torch.float64)
    assert (old + (values - old) != values).any(), "no value of these is rounded on its way"
    zeros = torch.zeros_like(values)
    found = ppo_metrics(zeros, zeros, zeros + 1, values, old, returns)
    assert value(found["val/clipfrac_avg"]) == 0.0


def test_a_mean_over_some_of_the_elements():
    values, keep = torch.tensor([1.0, float("nan"), 4.0, 100.0]), torch.tensor([True, False, True, False])
    found = mean_of(values, keep)
    assert (float(found.total), float(found.count)) == (5.0, 2.0)
    assert float(mean_of(values[2:]).count) == 2.0
    assert float(mean_of(keep, ~keep).total) == 0.0
