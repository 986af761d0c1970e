"""Expected gradients, exactly: a policy over 3 tokens and 2 steps, summed over all nine completions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from strop import losses as L

V, T = 3, 2
SIZE = V + V * V
FIRST = torch.arange(V).repeat_interleave(V)  # (9,) first token of each completion
SECOND = torch.arange(V).repeat(V)  # (9,)
SEGMENT = torch.arange(V * V).repeat_interleave(T)  # (18,) flat tokens of the nine completions


def token_logps(theta: torch.Tensor) -> torch.Tensor:
    """(9, 2) log-probs of both tokens of every completion; theta holds the logits of the 1 + 3 prefixes."""
    first = theta[:V].log_softmax(0)
    second = theta[V:].reshape(V, V).log_softmax(1)
    return torch.stack([first[FIRST], second[FIRST, SECOND]], dim=1)


@pytest.fixture(scope="module")
def theta() -> torch.Tensor:
    return 1.5 * torch.sin(1.7 * torch.arange(SIZE, dtype=torch.float64) + 0.3)


@pytest.fixture(scope="module")
def ref() -> torch.Tensor:
    return token_logps(torch.cos(2.3 * torch.arange(SIZE, dtype=torch.float64)))


def gradient(f: Callable[[torch.Tensor], torch.Tensor], theta: torch.Tensor) -> torch.Tensor:
    leaf = theta.clone().requires_grad_()
    return torch.autograd.grad(f(leaf), leaf)[0]


def expected_gradient(loss: Callable[[torch.Tensor], torch.Tensor], theta: torch.Tensor) -> torch.Tensor:
    """Mean over samples of the policy of the gradient of `loss`: (9, 2) token log-probs -> a value per completion."""

    def mean(leaf: torch.Tensor) -> torch.Tensor:
        logps = token_logps(leaf)
        return (logps.sum(1).exp().detach() * loss(logps)).sum()

    return gradient(mean, theta)


def kl(theta: torch.Tensor, ref: torch.Tensor) -> torch.Tensor:
    logps = token_logps(theta).sum(1)
    return (logps.exp() * (logps - ref.sum(1))).sum()


def forward_kl(theta: torch.Tensor, ref: torch.Tensor) -> torch.Tensor:
    logps, target = token_logps(theta).sum(1), ref.sum(1)
    return (target.exp() * (target - logps)).sum()


def local_kl(theta: torch.Tensor, ref: torch.Tensor, *, forward: bool = False) -> torch.Tensor:
    """KL of the next token, averaged over prefixes of the policy whose probabilities are held fixed."""
    logps = token_logps(theta)
    prefix = torch.stack([torch.ones(V * V, dtype=torch.float64), logps[:, 0].exp().detach()], dim=1)
    repeats = torch.tensor([V, 1.0], dtype=torch.float64)  # each first token stands in V completions
    p, q = (ref, logps) if forward else (logps, ref)
    return (prefix / repeats * p.exp() * (p - q)).sum()


def test_local_kl_is_the_kl(theta, ref):
    torch.testing.assert_close(local_kl(theta, ref), kl(theta, ref))


def test_k1_as_a_loss_has_no_gradient(theta, ref):
    whole = expected_gradient(lambda x: L.kl_estimate(x.sum(1), ref.sum(1), estimator="k1"), theta)
    by_token = expected_gradient(lambda x: L.kl_estimate(x, ref, estimator="k1").sum(1), theta)
    assert whole.abs().max() < 1e-15
    assert by_token.abs().max() < 1e-15
    assert gradient(lambda x: kl(x, ref), theta).abs().max() > 0.1


def test_k2_follows_the_reverse_kl(theta, ref):
    whole = expected_gradient(lambda x: L.kl_estimate(x.sum(1), ref.sum(1), estimator="k2"), theta)
    torch.testing.assert_close(whole, gradient(lambda x: kl(x, ref), theta))
    by_token = expected_gradient(lambda x: L.kl_estimate(x, ref, estimator="k2").sum(1), theta)
    torch.testing.assert_close(by_token, gradient(lambda x: local_kl(x, ref), theta))


def test_k3_follows_the_forward_kl(theta, ref):
    whole = expected_gradient(lambda x: L.kl_estimate(x.sum(1), ref.sum(1), estimator="k3"), theta)
    torch.testing.assert_close(whole, gradient(lambda x: forward_kl(x, ref), theta))
    by_token = expected_gradient(lambda x: L.kl_estimate(x, ref, estimator="k3").sum(1), theta)
    torch.testing.assert_close(by_token, gradient(lambda x: local_kl(x, ref, forward=True), theta))
    assert (whole - gradient(lambda x: kl(x, ref), theta)).abs().max() > 0.1


def policy_kl(theta: torch.Tensor, ref: torch.Tensor, **options: object) -> torch.Tensor:
    """Expected gradient of the KL term of the policy loss, tokens summed."""

    def loss(logps: torch.Tensor) -> torch.Tensor:
        nothing = torch.zeros(V * V * T, dtype=torch.float64)
        flat = L.policy_loss_flat(
            logps.reshape(-1), None, nothing, SEGMENT, V * V, ref_logps=ref.reshape(-1), beta=1.0, **options
        )
        return flat.reshape(V * V, T).sum(1)

    return expected_gradient(loss, theta)


def test_bias_corrected_k3_follows_the_reverse_kl(theta, ref):
    whole = expected_gradient(
        lambda x: (x - x.detach()).sum(1).exp() * L.kl_estimate(x.sum(1), ref.sum(1), estimator="k3"), theta
    )
    torch.testing.assert_close(whole, gradient(lambda x: kl(x, ref), theta))
    by_token = policy_kl(theta, ref, use_bias_correction_kl=True)
    torch.testing.assert_close(by_token, gradient(lambda x: local_kl(x, ref), theta))
    plain = policy_kl(theta, ref)
    torch.testing.assert_close(plain, gradient(lambda x: local_kl(x, ref, forward=True), theta))


def test_token_by_token_kl_leaves_out_later_prefixes(theta, ref):
    missing = (gradient(lambda x: local_kl(x, ref), theta) - gradient(lambda x: kl(x, ref), theta)).abs().max()
    assert float(missing) == pytest.approx(TOKEN_LOCAL_GAP, abs=1e-9)


def test_kl_estimators_have_the_mean_kl(theta, ref):
    logps = token_logps(theta)
    probs = logps.sum(1).exp()
    for estimator in ("k1", "k3"):
        mean = (probs * L.kl_estimate(logps.sum(1), ref.sum(1), estimator=estimator)).sum()
        torch.testing.assert_close(mean, kl(theta, ref))


REWARDS = torch.tensor([0.3, -1.0, 2.0, 0.0, 0.7, -0.2, 1.5, 0.1, -0.6], dtype=torch.float64)


def expected_reward(theta: torch.Tensor) -> torch.Tensor:
    return (token_logps(theta).sum(1).exp() * REWARDS).sum()


def test_reinforce_is_unbiased(theta):
    estimate = expected_gradient(lambda x: L.reinforce_loss(x.sum(1), REWARDS), theta)
    torch.testing.assert_close(-estimate, gradient(expected_reward, theta))


def test_clipped_surrogate_is_reinforce_where_the_policy_has_not_moved(theta):
    def loss(logps: torch.Tensor) -> torch.Tensor:
        return L.policy_loss_flat(logps.reshape(-1), None, REWARDS[SEGMENT], SEGMENT, V * V).reshape(-1, T).sum(1)

    torch.testing.assert_close(-expected_gradient(loss, theta), gradient(expected_reward, theta))


def group_gradient(
    advantages: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], theta: torch.Tensor, size: int
) -> torch.Tensor:
    """Expected gradient of mean_i of REINFORCE over all groups of `size` independent samples."""
    members = torch.cartesian_prod(*[torch.arange(V * V)] * size)  # (9^size, size)

    def mean(leaf: torch.Tensor) -> torch.Tensor:
        logps = token_logps(leaf).sum(1)[members]  # (9^size, size)
        probs = logps.sum(1).exp().detach()
        values = L.reinforce_loss(logps.reshape(-1), advantages(members, logps))
        return (probs * values.reshape(-1, size).mean(1)).sum()

    return gradient(mean, theta)


@pytest.mark.parametrize("size", [2, 3])
def test_leave_one_out_is_unbiased(size, theta):
    estimate = group_gradient(
        lambda members, _: L.leave_one_out(REWARDS[members].reshape(-1), num_generations=size), theta, size
    )
    torch.testing.assert_close(-estimate, gradient(expected_reward, theta))


def test_rloo_with_kl_in_the_reward_is_unbiased(theta, ref):
    def advantages(members: torch.Tensor, logps: torch.Tensor) -> torch.Tensor:
        flat = members.reshape(-1)
        rewards = L.rloo_rewards(REWARDS[flat], logps.reshape(-1), ref.sum(1)[flat], beta=0.3)
        return L.leave_one_out(rewards, num_generations=2)

    exact = gradient(lambda x: expected_reward(x) - 0.3 * kl(x, ref), theta)
    torch.testing.assert_close(-group_gradient(advantages, theta, 2), exact)


@pytest.mark.parametrize("size", [2, 3])
def test_a_mean_that_includes_oneself_scales_the_gradient(size, theta):
    estimate = group_gradient(
        lambda members, _: L.group_advantages(REWARDS[members].reshape(-1), num_generations=size, scale="none"),
        theta,
        size,
    )
    torch.testing.assert_close(-estimate, (1 - 1 / size) * gradient(expected_reward, theta))


def nash_md(theta: torch.Tensor, ref: torch.Tensor, form: str, beta: float = 0.1) -> tuple[torch.Tensor, torch.Tensor]:
    """Expected gradient of the loss, and the exact one of -(P(pi > pi') - beta KL(pi || mu)), pi' held fixed."""
    scores = torch.sin(2.9 * torch.arange(V**4, dtype=torch.float64)).reshape(V * V, V * V)
    prefers = torch.sigmoid(scores - scores.T)  # (9, 9) P(y > y'), not transitive
    logits = torch.cat([theta[:V][None], theta[V:].reshape(V, V)])
    ref_first, ref_second = ref[::V, 0], ref[:, 1].reshape(V, V)
    mixed = L.geometric_mixture_logps(logits, torch.cat([ref_first[None], ref_second]), mixture_coef=0.25)
    opponent = (mixed[0][FIRST] + mixed[1:][FIRST, SECOND]).exp()  # (9,) token by token
    assert float(opponent.sum()) == pytest.approx(1.0)

    def mean(leaf: torch.Tensor) -> torch.Tensor:
        logps = token_logps(leaf)
        total = leaf.new_zeros(())
        for other in range(V * V):
            values = L.nash_md_loss_flat(
                logps.reshape(-1), ref.reshape(-1), prefers[:, other], SEGMENT, V * V, beta=beta, form=form
            )
            total = total + opponent[other] * (logps.sum(1).exp().detach() * values.reshape(-1, T).sum(1)).sum()
        return total

    def exact(leaf: torch.Tensor) -> torch.Tensor:
        return -(token_logps(leaf).sum(1).exp() @ prefers @ opponent) + beta * kl(leaf, ref)

    return gradient(mean, theta), gradient(exact, theta)


@pytest.mark.parametrize("form", ["sequence", "reward_to_go"])
def test_nash_md_is_unbiased(form, theta, ref):
    estimate, exact = nash_md(theta, ref, form)
    torch.testing.assert_close(estimate, exact)


def test_nash_md_in_trl_form_is_biased_by_the_kl_of_later_tokens(theta, ref):
    estimate, exact = nash_md(theta, ref, "trl")
    local = gradient(lambda x: local_kl(x, ref) - kl(x, ref), theta)
    torch.testing.assert_close(estimate - exact, 0.1 * local)
    assert float((estimate - exact).abs().max()) == pytest.approx(0.1 * TOKEN_LOCAL_GAP, abs=1e-9)


def test_adversarial_loss_is_the_kl_penalised_policy_gradient(theta, ref):
    estimate = expected_gradient(
        lambda x: L.adversarial_loss(x.sum(1), ref.sum(1), REWARDS, beta=0.3, baseline=0.7), theta
    )
    exact = gradient(lambda x: expected_reward(x) - 0.3 * kl(x, ref), theta)
    torch.testing.assert_close(-estimate, exact)


TOKEN_LOCAL_GAP = 0.12074288973921776
"""Largest entry of the gradient that token-by-token KL terms leave out, for this policy and reference (nats)."""


@pytest.mark.parametrize("drifted", [False, True], ids=["first use", "used again"])
def test_completions_of_another_policy_are_weighted_to_the_policy_gradient(theta, ref, drifted):
    """RLOO on samples of other weights: their mean gradient is that of samples of the policy, baseline and all."""
    outcomes = torch.linspace(-1, 1, V * V, dtype=torch.float64) ** 3
    who = torch.cartesian_prod(*[torch.arange(V * V)] * 2).flatten()  # every pair of completions
    chance = ref.sum(1).exp()[who].reshape(-1, 2).prod(1)  # drawn from the sampler
    old, segment = token_logps(theta).detach(), torch.arange(len(who)).repeat_interleave(T)
    given = (old[who].flatten(), ref[who].flatten(), segment, len(who))
    weights = L.completion_weights(*given, mode="sequence_truncate", clip_max=None)
    advantages = L.leave_one_out(outcomes[who], num_generations=2)

    def estimated(leaf: torch.Tensor) -> torch.Tensor:
        logps = token_logps(leaf).sum(1)[who]
        before = old.sum(1)[who] if drifted else None
        terms = L.rloo_loss(logps, before, advantages, weights=weights)
        return (chance * terms.reshape(-1, 2).mean(1)).sum()

    exact = gradient(lambda leaf: -(token_logps(leaf).sum(1).exp() * outcomes).sum(), theta)
    assert exact.abs().max() > 0.05
    torch.testing.assert_close(gradient(estimated, theta), exact, rtol=0, atol=1e-13)


FIRST_TURNS = [0, 1, 1, 1, 2, 2, 2]
"""A tiny environment: the first word 0 ends it, 1 and 2 go on to a second turn of three words."""
TURN_REWARDS = [[0.3], [-0.4, 1.0], [-0.4, 0.2], [-0.4, -0.7], [0.1, 0.0], [0.1, 0.5], [0.1, 2.0]]
OUTCOMES = torch.tensor([0.6, 0.0, 1.0, -1.0, 0.4, 0.3, -0.8], dtype=torch.float64)


def turn_logps(theta: torch.Tensor) -> torch.Tensor:
    """(7, 2) log-probs of the turns of every trajectory, 0 where there is no second."""
    first = theta[:V].log_softmax(0)[FIRST_TURNS]
    second = torch.cat([theta.new_zeros(1), theta[V : 3 * V].reshape(2, V).log_softmax(1).flatten()])
    return torch.stack([first, second], dim=1)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("baseline", ["others", "group"])
def test_credit_by_turn_is_the_policy_gradient(theta, size, baseline):
    totals = OUTCOMES + torch.tensor([sum(rewards) for rewards in TURN_REWARDS], dtype=torch.float64)
    who = torch.cartesian_prod(*[torch.arange(7)] * size).flatten()  # every group of completions, one after the other
    returns = L.returns_by_turn(totals[who], [TURN_REWARDS[i] for i in who])
    if baseline == "others":
        columns = [L.leave_one_out(column, num_generations=size) for column in returns.unbind(1)]
    else:  # the own return is in the mean, so that the gradient is (G - 1) / G of it
        columns = [L.group_advantages(c, num_generations=size, scale="none") for c in returns.unbind(1)]
        columns = [column * size / (size - 1) for column in columns]

    def estimated(leaf: torch.Tensor) -> torch.Tensor:
        logps = turn_logps(leaf)
        chance = logps.sum(1).exp().detach()[who].reshape(-1, size).prod(1)
        terms = sum(L.rloo_loss(logps[who, turn], None, column) for turn, column in enumerate(columns))
        return (chance * terms.reshape(-1, size).mean(1)).sum()

    exact = gradient(lambda leaf: -(turn_logps(leaf).sum(1).exp() * totals).sum(), theta)
    assert exact.abs().max() > 0.05
    torch.testing.assert_close(gradient(estimated, theta), exact, rtol=0, atol=1e-14)
