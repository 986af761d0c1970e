"""Every number of tests/vectors.json for losses on sampled completions, value and gradient, to 1e-9."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from strop import losses as L
from strop.rewards import get_soft_overlong_punishment

TOL = 1e-9
F64 = torch.float64


def close(actual: Any, expected: Any, what: str = "") -> None:
    actual = torch.as_tensor(actual, dtype=F64).detach().reshape(-1)
    expected = torch.as_tensor(flat(expected), dtype=F64).reshape(-1)
    torch.testing.assert_close(actual, expected, rtol=TOL, atol=TOL, msg=lambda m: f"{what}: {m}")


def flat(values: Any) -> Any:
    if isinstance(values, list) and values and isinstance(values[0], list):
        return [x for row in values for x in row]
    return values


def t(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=F64)


PPO_OLD, PPO_REF, PPO_VALUES = t(-1, -0.5, -0.8, -0.2), t(-1.2, -0.4, -0.9, -0.2), t(0.2, 0.3, 0.1, 0.4)
ONE = torch.zeros(4, dtype=torch.int64)


def ppo_rollout() -> tuple[torch.Tensor, torch.Tensor]:
    kl = L.kl_estimate(PPO_OLD, PPO_REF, estimator="k1")
    rewards = L.token_rewards_flat(kl, t(1.0), ONE, 1, kl_coef=0.05)
    return L.gae_flat(rewards, PPO_VALUES, ONE, 1)


def test_ppo_gae(vectors):
    expected = vectors["ppo_gae_reward_at_eos"]
    for estimator in ("k1", "k2", "k3"):
        close(L.kl_estimate(PPO_OLD, PPO_REF, estimator=estimator), expected[estimator], estimator)
    kl = L.kl_estimate(PPO_OLD, PPO_REF, estimator="k1")
    close(L.token_rewards_flat(kl, t(1.0), ONE, 1, kl_coef=0.05), expected["rewards"])
    advantages, returns = ppo_rollout()
    close(advantages, expected["advantages"])
    close(advantages.mean(), expected["loss"])
    close(returns, expected["returns"])
    close(L.whiten(advantages), expected["whitened"])


def test_ppo_loss(vectors, value_and_grads):
    expected = vectors["ppo_loss_vf0.1"]
    advantages, returns = ppo_rollout()
    whitened = L.whiten(advantages)
    logps, values = t(-0.9, -0.8, -0.75, -0.1), t(0.5, 0.25, 0.15, 0.35)
    policy, (grad_logps,) = value_and_grads(lambda x: L.policy_loss_flat(x, PPO_OLD, whitened, ONE, 1).mean(), logps)
    critic, (grad_values,) = value_and_grads(lambda x: L.value_loss(x, PPO_VALUES, returns).mean(), values)
    close(policy, expected["policy_loss"])
    close(critic, expected["value_loss"])
    close(policy + 0.1 * critic, expected["loss"])
    close(grad_logps, expected["grad_new_logp"])
    close(grad_values, expected["grad_value"])
    close((logps - PPO_OLD).exp(), expected["ratio"])
    metrics = L.ppo_metrics(logps, PPO_OLD, whitened, values, PPO_VALUES, returns)
    close(metrics["policy/clipfrac_avg"].total / metrics["policy/clipfrac_avg"].count, expected["clipfrac"])
    close(metrics["policy/approxkl_avg"].total / metrics["policy/approxkl_avg"].count, expected["approxkl"])


def test_ppo_gae_with_the_score_one_token_late(vectors):
    expected = vectors["ppo_gae_TRL_reward_after_eos"]
    rewards = torch.cat([-0.05 * (PPO_OLD - PPO_REF), t(1.0)])
    values = torch.cat([PPO_VALUES, t(0.05)])
    advantages, _ = L.gae_flat(rewards, values, torch.zeros(5, dtype=torch.int64), 1)
    close(advantages, expected["advantages"])
    close(advantages[:4].mean(), expected["loss"])
    close(L.whiten(advantages, torch.tensor([1, 1, 1, 1, 0]))[:4], expected["whitened"])


POLICY: dict[str, dict[str, Any]] = {
    "grpo_seqmean": {},
    "grpo_dapo_cliphigher.28": {"loss_type": "dapo", "epsilon_high": 0.28},
    "grpo_dr_grpo_Lmax4": {"loss_type": "dr_grpo", "scale": "none"},
    "grpo_dapo_twosided_delta1.3": {"loss_type": "dapo", "delta": 1.3, "epsilon_high": 0.28},
    "grpo_seqmean_kl0.04_k3": {"beta": 0.04},
    "grpo_seqmean_kl0.04_k3_IS": {"beta": 0.04, "use_bias_correction_kl": True},
    "grpo_dapo_overlong_mask_o2": {"loss_type": "dapo", "drop": 1},
    "grpo_seqmean_overlong_mask_o2_keepG": {"drop": 1},
    "gspo_eps0.2": {"importance_sampling_level": "sequence"},
    "gspo_eps3e-4_4e-4": {"importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4},
    "cispo_paper_1+eps_high0.28": {"loss_type": "cispo", "epsilon_high": 0.28},
    "cispo_TRL_max1.3": {"loss_type": "cispo", "epsilon_high": 1.3, "cispo_cap": "absolute"},
    "cispo_TRL_default_trap_max0.2": {"loss_type": "cispo", "cispo_cap": "absolute"},
    "sapo_1.0_1.05": {"loss_type": "sapo"},
    "grpo_dapo_token_TIS_C2": {
        "loss_type": "dapo",
        "sampler": True,
        "importance_sampling_mode": "token_truncate",
        "importance_sampling_clip_max": 2.0,
    },
    "grpo_dapo_sequence_mask_C2.5": {
        "loss_type": "dapo",
        "sampler": True,
        "importance_sampling_mode": "sequence_mask",
        "importance_sampling_clip_max": 2.5,
    },
}


@pytest.mark.parametrize("name", POLICY)
def test_policy(name, vectors, group, value_and_grads):
    expected, options = vectors[name], dict(POLICY[name])
    advantages = L.group_advantages(group["rewards"], num_generations=3, scale=options.pop("scale", "group"))
    kept = group["segment"] != options.pop("drop", -1)
    segment = group["segment"][kept]
    if options.pop("sampler", False):
        options["sampler_logps"] = group["sampler_logps"]
    if "beta" in options:
        options["ref_logps"] = group["ref_logps"]
    aggregation = L.POLICY_AGGREGATION[options.get("loss_type", "grpo")]

    def loss(logps):
        values = L.policy_loss_flat(logps[kept], group["old_logps"][kept], advantages[segment], segment, 3, **options)
        term = L.policy_term(values, segment, 3, aggregation=aggregation, max_completion_length=4)
        return L.step_loss([term], {"completions": 3, "tokens": segment.numel()})

    value, (grad,) = value_and_grads(loss, group["logps"])
    close(value, expected["loss"])
    if "grad_new_logp" in expected:
        close(grad, expected["grad_new_logp"])
    if "s" in expected:
        arguments = group["logps"], group["old_logps"], group["segment"], 3
        ratios = L.log_importance_weights(*arguments, level="sequence").exp()  # (N,), one value per completion
        close(L.segment_mean(ratios, group["segment"], 3), expected["s"])


def test_policy_weights(vectors, group):
    ratio = (group["logps"] - group["old_logps"]).exp()
    close(ratio.clamp(max=1.28), vectors["cispo_paper_1+eps_high0.28"]["weights"])
    close(ratio.clamp(max=1.3), vectors["cispo_TRL_max1.3"]["weights"])
    close(ratio.clamp(max=0.2), vectors["cispo_TRL_default_trap_max0.2"]["weights"])
    arguments = group["old_logps"], group["sampler_logps"], group["segment"], 3
    close(
        L.sampler_weights(*arguments, mode="token_truncate", clip_max=2.0), vectors["grpo_dapo_token_TIS_C2"]["weights"]
    )
    sequence = vectors["grpo_dapo_sequence_mask_C2.5"]
    first = torch.tensor([0, 2, 5])
    close(L.sampler_weights(*arguments, mode="sequence_mask", clip_max=2.5)[first], sequence["weights"])
    close(L.sampler_weights(*arguments, mode="sequence_mask", clip_max=None)[first], sequence["seq_ratio"])


def test_group_fixture(vectors, group):
    fixture = vectors["fixture_G"]
    close(L.group_advantages(group["rewards"], num_generations=3), fixture["adv_group"])
    close(L.group_advantages(group["rewards"], num_generations=3, scale="none"), fixture["adv_none"])
    close(group["rewards"].mean(), fixture["mean"])
    close(group["rewards"].std(), fixture["std"])


def test_overlong(vectors):
    reward = get_soft_overlong_punishment(max_completion_len=100, soft_punish_cache=20)
    close(torch.tensor(reward([[0] * n for n in (80, 90, 100, 101)])), vectors["overlong_soft_Lmax100_cache20"]["loss"])


def test_rloo(vectors, value_and_grads):
    expected = vectors["rloo_adv_k4_beta0.05"]
    kl = t(0.4, -0.2, 0.1, 0.3)
    rewards = L.rloo_rewards(t(1, 0.5, 0, 0.5), kl - 2, t(-2, -2, -2, -2), beta=0.05)
    close(rewards, expected["reward_with_kl"])
    advantages = L.leave_one_out(rewards, num_generations=4)
    close(advantages, expected["advantages"])
    close(
        4 / 3 * L.group_advantages(rewards, num_generations=4, scale="none"),
        expected["equals_k_over_km1_times_centered"],
    )
    for loss in (lambda x: L.reinforce_loss(x, advantages), lambda x: L.rloo_loss(x, None, advantages)):
        _, (grad,) = value_and_grads(lambda x, loss=loss: loss(x).mean(), kl - 2)
        close(grad, expected["grad_seq_logp_on_policy"])
    close(L.rloo_loss(kl - 2, kl - 2, advantages).mean(), expected["loss"])


NASH = {"nashmd_paper_sequence": "sequence", "nashmd_reward_to_go": "reward_to_go", "nashmd_TRL_per_token": "trl"}


@pytest.mark.parametrize("name", NASH)
def test_nash_md(name, vectors, value_and_grads):
    segment = torch.zeros(2, dtype=torch.int64)
    value, (grad,) = value_and_grads(
        lambda x: L.nash_md_loss_flat(x, t(-0.9, -0.8), t(0.7), segment, 1, beta=0.1, form=NASH[name]).sum(),
        t(-0.5, -1.0),
    )
    close(value, vectors[name]["loss"])
    close(grad, vectors[name]["grad_token"])


def test_nash_md_mixture(vectors):
    expected, logits, ref = vectors["nashmd_mixture_coef0.25"], t(1, 0, -1), t(0, 1, 0)
    close(L.geometric_mixture_logps(logits, ref, mixture_coef=0.25).exp(), expected["mixture_probs"])
    close(L.geometric_mixture_logps(logits, ref, mixture_coef=0.0).exp(), expected["policy"])
    close(L.geometric_mixture_logps(logits, ref, mixture_coef=1.0).exp(), expected["ref"])
    close(expected["loss"], 0.0)


@pytest.mark.parametrize(("name", "wins"), [("xpo_y_preferred", True), ("xpo_yref_preferred", False)])
def test_xpo(name, wins, vectors, value_and_grads):
    expected = vectors[name]

    def loss(y, opponent):
        return L.xpo_loss(y, t(-3.5), opponent, t(-3.6), torch.tensor([wins]), beta=0.5, alpha=0.01).mean()

    value, (grad_y, grad_opponent) = value_and_grads(loss, t(-3.0), t(-4.0))
    close(value, expected["loss"])
    close(grad_y, expected["grad_logpi_y"])
    close(grad_opponent, expected["grad_logpi_yref"])
    if "bonus" in expected:
        close(L.xpo_bonus(t(-4.0), alpha=0.01), expected["bonus"])
        close(value - expected["bonus"], expected["dpo"])


@pytest.mark.parametrize(
    ("name", "penalty"), [("online_dpo_with_penalty_beta0.1", 1.0), ("online_dpo_without_penalty_beta0.1", None)]
)
def test_online_dpo(name, penalty, vectors, pairs, value_and_grads):
    expected = vectors[name]
    scores = L.missing_eos_penalty(t(0.3, 0.1), torch.tensor([False, True]), penalty=penalty)
    if penalty:
        close(scores, expected["rewards_after_penalty"])
    first_wins = bool(scores[0] > scores[1])

    def loss(first, second):
        policy, reference = [first, second], [pairs["ref_chosen"][:1], pairs["ref_rejected"][:1]]
        order = [0, 1] if first_wins else [1, 0]
        return L.dpo_loss(*[policy[i] for i in order], *[reference[i] for i in order], beta=0.1).mean()

    value, (grad_1, grad_2) = value_and_grads(loss, pairs["chosen"][:1], pairs["rejected"][:1])
    close(value, expected["loss"])
    close(grad_1, expected["grad_sample1"])
    close(grad_2, expected["grad_sample2"])
