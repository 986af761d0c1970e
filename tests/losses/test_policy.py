from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strop.errors import ConfigError
from strop.losses import (
    check_policy_options,
    names,
    off_policy_mask,
    policy_loss,
    policy_loss_flat,
    policy_term,
    sampler_weights,
    step_loss,
    vespo_gate,
)

PROPERTY = settings(max_examples=30, deadline=None, derandomize=True)
SEGMENT = torch.tensor([0, 0, 1, 1, 1, 3])
S = 4  # completion 2 has no scored token
ALL = [(name, None) for name in names.POLICY_LOSS_TYPES] + [("grpo", "sequence")]


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


LOGPS = random(6, seed=1) - 3
OLD = LOGPS + 0.3 * random(6, seed=2)
ADVANTAGES = torch.tensor([1.2, -0.8, 0.4, -0.3], dtype=torch.float64)


def grad_of(loss_type: str, level: str | None, logps=LOGPS, old=OLD, advantages=ADVANTAGES[SEGMENT], **options):
    leaf = logps.clone().requires_grad_()
    options |= {"loss_type": loss_type, "importance_sampling_level": level}
    value = policy_loss_flat(leaf, old, advantages, SEGMENT, S, **options)
    return torch.autograd.grad(value.sum(), leaf)[0]


@PROPERTY
@given(
    st.lists(st.lists(st.integers(0, 1), min_size=4, max_size=4), min_size=1, max_size=4),
    st.sampled_from(ALL),
    st.integers(0, 99),
    st.booleans(),
)
def test_flat_equals_masked_rows(mask_rows, kind, seed, per_token):
    mask = torch.tensor(mask_rows)
    shape = mask.shape
    logps = random(*shape, seed=seed).requires_grad_()
    tokens = {"old_logps": logps.detach() + 0.3 * random(*shape, seed=seed + 1)}
    tokens |= {"ref_logps": random(*shape, seed=seed + 2), "keep": (random(*shape, seed=seed + 3) > 0).double()}
    tokens["sampler_logps"] = tokens["old_logps"] + 0.2 * random(*shape, seed=seed + 4)
    advantages = random(*(shape if per_token else shape[:1]), seed=seed + 5)
    options = {"loss_type": kind[0], "importance_sampling_level": kind[1], "beta": 0.1, "use_bias_correction_kl": True}

    found = policy_loss(logps, advantages=advantages, mask=mask, **tokens, **options)
    keep = mask.bool()
    spread = advantages if per_token else advantages[:, None].expand(shape)
    flat = policy_loss_flat(
        logps[keep],
        advantages=spread[keep],
        segment=keep.nonzero()[:, 0],
        num_completions=shape[0],
        **{name: value[keep] for name, value in tokens.items()},
        **options,
    )
    assert torch.equal(found[keep], flat)
    assert (found[~keep] == 0).all()
    # What padding holds is never looked at.
    poisoned = {name: value.masked_fill(~keep, torch.nan) for name, value in tokens.items()}
    filled = logps.detach().masked_fill(~keep, torch.inf).requires_grad_()
    again = policy_loss(filled, advantages=advantages, mask=mask, **poisoned, **options)
    assert torch.equal(again, found)
    again.sum().backward()
    found.sum().backward()
    assert torch.equal(filled.grad[keep], logps.grad[keep])
    assert (filled.grad[~keep] == 0).all()


@pytest.mark.parametrize(("loss_type", "level"), ALL)
def test_on_policy_gradients_coincide(loss_type, level):
    """Where the policy has not moved, every variant is REINFORCE: -A for each token (the sequence ratio spreads the
    completion's -A evenly, which is the same for a per-completion advantage)."""
    expected = -ADVANTAGES[SEGMENT]
    torch.testing.assert_close(grad_of(loss_type, level, old=None), expected)
    torch.testing.assert_close(grad_of(loss_type, level, old=LOGPS), expected)
    if loss_type in names.CLIPPED_LOSS_TYPES:
        value = policy_loss_flat(LOGPS, None, ADVANTAGES[SEGMENT], SEGMENT, S, loss_type=loss_type)
        torch.testing.assert_close(value, -ADVANTAGES[SEGMENT])


def test_on_policy_value_of_the_loss():
    """It says nothing about progress: -mean A for a mean of means, -sum |y| A / sum |y| for a token mean."""
    counts = {"completions": S, "tokens": 6}
    found = {}
    for loss_type in ("grpo", "dapo", "dr_grpo"):
        values = policy_loss_flat(LOGPS, None, ADVANTAGES[SEGMENT], SEGMENT, S, loss_type=loss_type)
        aggregation = names.POLICY_AGGREGATION[loss_type]
        term = policy_term(values, SEGMENT, S, aggregation=aggregation, max_completion_length=5)
        found[loss_type] = float(step_loss([term], counts))
    a, lengths = ADVANTAGES, torch.tensor([2.0, 3.0, 0.0, 1.0], dtype=torch.float64)
    weighted = float((lengths * a).sum())
    expected = {"grpo": -float(a[[0, 1, 3]].sum()) / 4, "dapo": -weighted / 6, "dr_grpo": -weighted / 20}
    assert found == pytest.approx(expected)


@PROPERTY
@given(st.floats(0.01, 3.0), st.floats(-2, 2), st.floats(0.05, 0.5), st.floats(0.05, 0.9))
def test_clipped_tokens_have_exactly_no_gradient(ratio, advantage, eps, eps_high):
    leaf = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    loss = policy_loss_flat(
        leaf,
        torch.zeros(1, dtype=torch.float64),
        torch.tensor([advantage], dtype=torch.float64),
        torch.zeros(1, dtype=torch.int64),
        1,
        epsilon=eps,
        epsilon_high=eps_high,
    )
    loss.backward()
    moved = float(leaf.detach().exp())
    clipped = (advantage > 0 and moved > 1 + eps_high) or (advantage < 0 and moved < 1 - eps)
    if clipped or advantage == 0:
        assert float(leaf.grad) == 0.0
    elif abs(moved - 1 - eps_high) > 1e-9 and abs(moved - 1 + eps) > 1e-9:
        assert float(leaf.grad) == pytest.approx(-moved * advantage, rel=1e-9)


@pytest.mark.parametrize(("loss_type", "level"), ALL)
def test_gradient_flows_to_the_policy_only(loss_type, level):
    leaves = {name: x.clone().requires_grad_() for name, x in {"old": OLD, "ref": LOGPS - 0.4, "sampler": OLD}.items()}
    advantages = ADVANTAGES[SEGMENT].requires_grad_()
    logps = LOGPS.clone().requires_grad_()
    options = {"loss_type": loss_type, "importance_sampling_level": level, "beta": 0.1}
    policy_loss_flat(
        logps,
        leaves["old"],
        advantages,
        SEGMENT,
        S,
        ref_logps=leaves["ref"],
        sampler_logps=leaves["sampler"],
        **options,
    ).sum().backward()
    assert (logps.grad != 0).all()
    assert all(x.grad is None for x in [advantages, *leaves.values()])


def test_special_cases_recover_grpo():
    plain = grad_of("grpo", None)
    torch.testing.assert_close(grad_of("dapo", None, epsilon_high=0.2), plain)
    torch.testing.assert_close(grad_of("dapo", None, delta=1e6), plain)
    assert not torch.allclose(grad_of("dapo", None, delta=1.3, logps=OLD + 0.5), grad_of("dapo", None, logps=OLD + 0.5))


def test_delta_only_acts_on_negative_advantages():
    difference = grad_of("grpo", None, logps=OLD + 0.5) - grad_of("grpo", None, logps=OLD + 0.5, delta=1.5)
    assert (difference[ADVANTAGES[SEGMENT] > 0] == 0).all()
    assert (difference[ADVANTAGES[SEGMENT] < 0] != 0).all()


def test_cispo_never_drops_a_token():
    far = OLD + torch.tensor([3.0, -3.0, 3.0, -3.0, 3.0, -3.0])
    assert (grad_of("grpo", None, logps=far) == 0).any()
    assert (grad_of("cispo", None, logps=far) != 0).all()
    expected = -(far - OLD).exp().clamp(max=1.28) * ADVANTAGES[SEGMENT]
    torch.testing.assert_close(grad_of("cispo", None, logps=far, epsilon_high=0.28), expected)


def test_sapo_gate():
    ratio = (LOGPS - OLD).exp()
    tau = torch.where(ADVANTAGES[SEGMENT] > 0, 1.0, 1.05).double()
    gate = torch.sigmoid(tau * (ratio - 1))
    expected = -4 * gate * (1 - gate) * ratio * ADVANTAGES[SEGMENT]
    torch.testing.assert_close(grad_of("sapo", None), expected, rtol=1e-6, atol=1e-6)


def test_vespo_gate():
    w = torch.zeros(S, dtype=torch.float64).index_add(0, SEGMENT, LOGPS - OLD).exp()[SEGMENT]
    k = torch.where(ADVANTAGES[SEGMENT] >= 0, 2.0, 3.0)
    rate = torch.where(ADVANTAGES[SEGMENT] >= 0, 3.0, 2.0)
    expected = w**k * torch.exp(rate * (1 - w))
    torch.testing.assert_close(vespo_gate(LOGPS - OLD, ADVANTAGES[SEGMENT], SEGMENT, S), expected)
    torch.testing.assert_close(grad_of("vespo", None), -expected * ADVANTAGES[SEGMENT])
    far = vespo_gate(torch.full((6,), 900.0), ADVANTAGES[SEGMENT], SEGMENT, S)
    assert torch.isfinite(far).all()


def test_vespo_takes_the_sampler_weights_into_the_gate():
    sampler = OLD - 0.1
    options = {"sampler_logps": sampler, "importance_sampling_mode": "token_truncate"}
    found = grad_of("vespo", None, **options)
    expected = grad_of("vespo", None, old=sampler)
    torch.testing.assert_close(found, expected)


def test_luspo_is_gspo_added_up_over_tokens():
    options = {"importance_sampling_level": "sequence"}
    gspo = policy_loss_flat(LOGPS, OLD, ADVANTAGES[SEGMENT], SEGMENT, S, loss_type="grpo", **options)
    luspo = policy_loss_flat(LOGPS, OLD, ADVANTAGES[SEGMENT], SEGMENT, S, loss_type="luspo")
    assert torch.equal(gspo, luspo)
    counts = {"completions": S}
    mean = step_loss([policy_term(gspo, SEGMENT, S, aggregation="seq_mean_token_mean")], counts)
    total = step_loss([policy_term(luspo, SEGMENT, S, aggregation="seq_mean_token_sum")], counts)
    sequence = torch.stack([gspo[0], gspo[2], gspo[5]])
    torch.testing.assert_close(mean, sequence.sum() / 4)
    torch.testing.assert_close(total, (sequence * torch.tensor([2, 3, 1])).sum() / 4)


def test_kl_is_added_to_dropped_tokens_too():
    ref = LOGPS - 0.4
    nothing = torch.zeros(6)
    loss = policy_loss_flat(LOGPS, OLD, ADVANTAGES[SEGMENT], SEGMENT, S, ref_logps=ref, beta=0.5, keep=nothing)
    torch.testing.assert_close(loss, torch.full((6,), 0.5 * (math.exp(-0.4) - 1 + 0.4), dtype=torch.float64))


@pytest.mark.parametrize("estimator", names.KL_ESTIMATORS)
def test_kl_estimator_is_used(estimator):
    d = 0.4
    loss = policy_loss_flat(
        LOGPS, None, torch.zeros(6), SEGMENT, S, ref_logps=LOGPS - d, beta=1.0, kl_estimator=estimator
    )
    expected = {"k1": d, "k2": d * d / 2, "k3": math.exp(-d) - 1 + d}[estimator]
    assert loss.tolist() == pytest.approx([expected] * 6)


def test_sampler_weights_modes():
    old = torch.zeros(6, dtype=torch.float64)
    gaps = torch.tensor([0.5, -0.2, 1.5, -2.0, 0.1, torch.nan], dtype=torch.float64)

    def weights(mode, low=None, high=3.0):
        return sampler_weights(old, -gaps, SEGMENT, S, mode=mode, clip_max=high, clip_min=low).tolist()

    token = [math.exp(g) for g in (0.5, -0.2, 1.5, -2.0, 0.1, 0.0)]
    assert weights("token_truncate") == pytest.approx([min(w, 3.0) for w in token])
    assert weights("token_truncate", low=0.5) == pytest.approx([min(max(w, 0.5), 3.0) for w in token])
    assert weights("token_mask", low=0.5) == pytest.approx([w if 0.5 <= w <= 3.0 else 0.0 for w in token])
    first, second = math.exp(0.3), math.exp(-0.4)
    assert weights("sequence_truncate", high=1.2) == pytest.approx([1.2, 1.2, second, second, second, 1.0])
    assert weights("sequence_mask", high=1.2) == pytest.approx([0, 0, second, second, second, 1.0])
    assert weights("sequence_mask", low=0.9, high=None) == pytest.approx([first, first, 0, 0, 0, 1.0])


def test_sampler_weights_multiply_the_policy_term_only():
    sampler = OLD + 0.1 * random(6, seed=5)
    weights = sampler_weights(OLD, sampler, SEGMENT, S, mode="token_truncate")
    options = {"ref_logps": LOGPS - 0.4, "beta": 0.5}
    arguments = LOGPS, OLD, ADVANTAGES[SEGMENT], SEGMENT, S
    plain = policy_loss_flat(*arguments)
    kl = policy_loss_flat(*arguments, **options) - plain
    both = policy_loss_flat(*arguments, sampler_logps=sampler, importance_sampling_mode="token_truncate", **options)
    torch.testing.assert_close(both, plain * weights + kl)


def test_off_policy_mask():
    sampler = LOGPS + torch.tensor([0.3, 0.1, 0.0, 0.9, 0.0, 0.5], dtype=torch.float64)
    kept = off_policy_mask(LOGPS, sampler, -ADVANTAGES[SEGMENT].abs(), SEGMENT, S, threshold=0.25)
    assert kept.tolist() == [True, True, False, False, False, False]
    kept = off_policy_mask(LOGPS, sampler, ADVANTAGES[SEGMENT], SEGMENT, S, threshold=0.25)
    assert kept.tolist() == [True, True, False, False, False, False]
    kept = off_policy_mask(LOGPS, sampler, ADVANTAGES[SEGMENT].abs(), SEGMENT, S, threshold=0.25)
    assert kept.all()
    unknown = torch.full_like(LOGPS, math.nan)
    assert off_policy_mask(LOGPS, unknown, -ADVANTAGES[SEGMENT].abs(), SEGMENT, S, threshold=0.25).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("move", [-500.0, 500.0])
@pytest.mark.parametrize(("loss_type", "level"), ALL)
def test_finite_however_far_the_policy_moved(loss_type, level, move, dtype):
    leaf = (OLD + move).to(dtype).requires_grad_()
    options = {"ref_logps": OLD.to(dtype), "beta": 0.1, "use_bias_correction_kl": True}
    options |= {"loss_type": loss_type, "importance_sampling_level": level, "sampler_logps": OLD.to(dtype) - move}
    loss = policy_loss_flat(leaf, OLD.to(dtype), ADVANTAGES[SEGMENT].to(dtype), SEGMENT, S, **options)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(leaf.grad).all()
    assert loss.dtype == dtype


def test_no_tokens_at_all():
    logps = torch.zeros(0, requires_grad=True)
    none = torch.zeros(0, dtype=torch.int64)
    for loss_type, level in ALL:
        loss = policy_loss_flat(logps, None, logps, none, 2, loss_type=loss_type, importance_sampling_level=level)
        assert loss.shape == (0,)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loss_type": "gspo"}, "loss_type is 'gspo'"),
        ({"loss_type": "cispo", "importance_sampling_level": "sequence"}, "no meaning for loss_type 'cispo'"),
        ({"loss_type": "luspo", "importance_sampling_level": "token"}, "no meaning for loss_type 'luspo'"),
        ({"loss_type": "grpo", "importance_sampling_level": "word"}, "importance_sampling_level is 'word'"),
        ({"loss_type": "sapo", "delta": 4.0}, "delta has no meaning"),
        ({"loss_type": "grpo", "delta": 1.2}, "set it above 1.2"),
        ({"loss_type": "grpo", "epsilon_high": 0.5, "delta": 1.4}, "set it above 1.5"),
        ({"loss_type": "grpo", "cispo_cap": "absolute"}, "cispo_cap has no meaning"),
        ({"loss_type": "cispo", "cispo_cap": "both"}, "cispo_cap is 'both'"),
        ({"loss_type": "grpo", "kl_estimator": "k4"}, "kl_estimator"),
        ({"loss_type": "grpo", "importance_sampling_mode": "drop"}, "importance_sampling_mode is 'drop'"),
        ({"loss_type": "vespo", "importance_sampling_mode": "sequence_mask"}, "no meaning for loss_type 'vespo'"),
        ({"loss_type": "grpo", "epsilon": -0.1}, "epsilon is -0.1"),
        ({"loss_type": "grpo", "epsilon_high": -0.1}, "epsilon_high is -0.1"),
    ],
)
def test_wrong_options(options, words):
    with pytest.raises(ConfigError, match=words):
        check_policy_options(**options)
    with pytest.raises(ConfigError, match=words):
        policy_loss_flat(LOGPS, OLD, ADVANTAGES[SEGMENT], SEGMENT, S, sampler_logps=OLD, **options)


def test_kl_without_a_reference():
    with pytest.raises(ConfigError, match="no ref_logps"):
        policy_loss_flat(LOGPS, OLD, ADVANTAGES[SEGMENT], SEGMENT, S, beta=0.1)
