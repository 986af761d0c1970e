from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strop.errors import ConfigError
from strop.losses import check_dpo_options, dpo_loss, f_divergence_score, names

PROPERTY = settings(max_examples=25, deadline=None, derandomize=True)
NUMBER = st.floats(-6, 6)
FOUR = st.tuples(NUMBER, NUMBER, NUMBER, NUMBER)
EPS = {"robust": 0.1, "exo_pair": 1e-3}
# The summed losses of the difference u_w - u_l alone.
DIFFERENCE = ("sigmoid", "robust", "hinge", "ipo", "exo_pair", "discopop", "exponential")


def loss(four, loss_type="sigmoid", **options):
    options.setdefault("label_smoothing", EPS.get(loss_type, 0.0))
    if loss_type == "sigmoid_norm":
        options |= {"lengths_chosen": torch.tensor([2.0]), "lengths_rejected": torch.tensor([3.0])}
    tensors = [torch.tensor([x], dtype=torch.float64) for x in four]
    return float(dpo_loss(*tensors, loss_type=loss_type, **options))


def grads(four, loss_type="sigmoid", **options):
    options.setdefault("label_smoothing", EPS.get(loss_type, 0.0))
    tensors = [torch.tensor([x], dtype=torch.float64, requires_grad=True) for x in four]
    found = torch.autograd.grad(dpo_loss(*tensors, loss_type=loss_type, **options), tensors, allow_unused=True)
    return [None if g is None else float(g) for g in found]


AT_THE_REFERENCE = {
    "sigmoid": math.log(2),
    "sigmoid_norm": math.log(2),
    "robust": math.log(2),
    "hinge": 1.0,
    "ipo": 1 / (4 * 0.3**2),
    "exo_pair": math.log(0.5) - 0.5 * math.log(1e-3 * (1 - 1e-3)),
    "nca_pair": 2 * math.log(2),
    "bco_pair": 2 * math.log(2),
    "sppo_hard": 1 / (2 * 0.3**2),
    "aot": math.log(2),
    "aot_unpaired": math.log(2),
    "apo_zero": 1.0,
    "apo_down": 1.0,
    "discopop": (math.log(2) + 1) / 2,
    "exponential": 1.0,
}


@pytest.mark.parametrize("loss_type", names.DPO_LOSS_TYPES)
def test_value_where_policy_and_reference_agree(loss_type):
    assert loss((-3, -5, -3, -5), loss_type, beta=0.3) == pytest.approx(AT_THE_REFERENCE[loss_type], rel=1e-12)


@pytest.mark.parametrize(
    ("loss_type", "expected"), [("sigmoid", -0.15), ("apo_zero", -0.075), ("apo_down", 0.0), ("exponential", -0.3)]
)
def test_gradient_where_policy_and_reference_agree(loss_type, expected):
    assert grads((-3, -5, -3, -5), loss_type, beta=0.3)[0] == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("loss_type", names.DPO_LOSS_TYPES)
def test_no_gradient_to_the_reference(loss_type):
    lengths = {"lengths_chosen": torch.tensor([2.0]), "lengths_rejected": torch.tensor([3.0])}
    options = lengths if loss_type == "sigmoid_norm" else {}
    assert grads((-3, -5, -2, -4), loss_type, **options)[2:] == [None, None]


@pytest.mark.parametrize("loss_type", DIFFERENCE)
@PROPERTY
@given(FOUR, NUMBER)
def test_shifts_that_cancel(loss_type, four, k):
    w, r, ref_w, ref_r = four
    value = loss(four, loss_type)
    for shifted in ((w + k, r + k, ref_w, ref_r), (w, r, ref_w + k, ref_r + k), (w + k, r, ref_w + k, ref_r)):
        assert loss(shifted, loss_type) == pytest.approx(value, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("loss_type", names.DPO_LOSS_TYPES)
@PROPERTY
@given(FOUR, NUMBER)
def test_joint_shift_of_policy_and_reference(loss_type, four, k):
    w, r, ref_w, ref_r = four
    value = loss(four, loss_type)
    assert loss((w + k, r, ref_w + k, ref_r), loss_type) == pytest.approx(value, rel=1e-9, abs=1e-9)
    assert loss((w, r + k, ref_w, ref_r + k), loss_type) == pytest.approx(value, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("loss_type", DIFFERENCE)
@PROPERTY
@given(FOUR)
def test_opposite_gradients(loss_type, four):
    grad_w, grad_r, *_ = grads(four, loss_type)
    assert grad_w == pytest.approx(-grad_r, rel=1e-12)


@PROPERTY
@given(FOUR, st.floats(0.01, 2.0), st.floats(0.01, 0.45))
def test_swapping_the_pair(four, beta, eps):
    w, r, ref_w, ref_r = four
    swapped = (r, w, ref_r, ref_w)
    a = beta * ((w - ref_w) - (r - ref_r))
    assert loss(four, beta=beta) - loss(swapped, beta=beta) == pytest.approx(-a, abs=1e-9)
    robust = loss(four, "robust", beta=beta, label_smoothing=eps)
    clean, flipped = loss(four, beta=beta), loss(swapped, beta=beta)
    assert robust * (1 - 2 * eps) == pytest.approx((1 - eps) * clean - eps * flipped, abs=1e-9)
    half = [loss(x, beta=beta, label_smoothing=0.5) for x in (four, swapped)]
    assert half[0] == pytest.approx(half[1], rel=1e-12)


@PROPERTY
@given(FOUR, st.floats(0.01, 0.45))
def test_robust_loss_is_clean_on_average_over_flipped_labels(four, eps):
    w, r, ref_w, ref_r = four
    robust = [loss(x, "robust", label_smoothing=eps) for x in (four, (r, w, ref_r, ref_w))]
    assert (1 - eps) * robust[0] + eps * robust[1] == pytest.approx(loss(four), abs=1e-9)


@PROPERTY
@given(FOUR)
def test_special_cases_of_sigmoid(four):
    plain = loss(four)
    assert loss(four, "robust", label_smoothing=0.0) == pytest.approx(plain, rel=1e-12)
    assert loss(four, f_divergence="alpha_divergence", f_alpha=1.0) == plain
    almost = loss(four, f_divergence="alpha", f_alpha=1.0 - 1e-7)
    assert almost == pytest.approx(plain, rel=1e-5)
    forward = loss(four, f_divergence="forward_kl")
    assert loss(four, f_divergence="alpha_divergence", f_alpha=0.0) == pytest.approx(forward, rel=1e-12)
    assert loss(four, "aot") == pytest.approx(plain, rel=1e-12)
    assert loss(four, "aot_unpaired") == pytest.approx(plain, rel=1e-12)


@pytest.mark.parametrize("f_divergence", names.F_DIVERGENCES)
def test_scores_agree_with_the_reference_to_first_order(f_divergence):
    """s(0) = 0 and s increases: a log-ratio above the reference's is a higher reward under every divergence."""
    u = torch.tensor([-2.0, 0.0, 2.0], dtype=torch.float64)
    score = f_divergence_score(u, f_divergence=f_divergence, f_alpha=0.3)
    assert float(score[1]) == pytest.approx(0.0, abs=1e-15)
    assert score[0] < score[1] < score[2]


@pytest.mark.parametrize("loss_type", ["aot", "aot_unpaired"])
def test_sorting_forgets_the_order_of_pairs(loss_type):
    generator = torch.Generator().manual_seed(0)
    columns = [torch.randn(6, generator=generator, dtype=torch.float64) for _ in range(4)]
    order = torch.randperm(6, generator=generator)
    plain = dpo_loss(*columns, loss_type=loss_type)
    torch.testing.assert_close(dpo_loss(*[c[order] for c in columns], loss_type=loss_type), plain)
    assert not torch.allclose(plain.mean(), dpo_loss(*columns).mean())


def test_discopop_traps_slightly_misranked_pairs():
    def value(a: float) -> float:
        return loss((a, 0, 0, 0), "discopop", beta=1.0)

    low, high = -0.11857, 0.072006
    assert value(low) == pytest.approx(0.785924, abs=1e-6)
    assert value(high) == pytest.approx(0.878290, abs=1e-6)
    assert value(low) < min(value(low - 0.01), value(low + 0.01))
    assert value(high) > max(value(high - 0.01), value(high + 0.01))


@PROPERTY
@given(FOUR)
def test_bounds(four):
    assert 0 < loss(four, "apo_zero") < 2
    assert 0 < loss(four, "apo_down") < 2
    assert loss((10, -10, -50, 50), "robust", beta=1.0, label_smoothing=0.1) < 0  # unbounded below, as published


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gap", [-3e3, 3e3])
@pytest.mark.parametrize("loss_type", names.DPO_LOSS_TYPES)
def test_finite_at_extremes(loss_type, gap, dtype):
    leaves = [torch.tensor([x], dtype=dtype, requires_grad=True) for x in (gap, -gap)]
    zero = torch.zeros(1, dtype=dtype)
    lengths = {"lengths_chosen": torch.ones(1), "lengths_rejected": torch.ones(1)} if "norm" in loss_type else {}
    eps = EPS.get(loss_type, 0.0)
    value = dpo_loss(*leaves, zero, zero, loss_type=loss_type, label_smoothing=eps, **lengths)
    grad = torch.autograd.grad(value, leaves)
    assert torch.isfinite(value).all()
    assert all(torch.isfinite(g).all() for g in grad)


@pytest.mark.parametrize("f_divergence", names.F_DIVERGENCES)
@pytest.mark.parametrize("u", [-3e3, 3e3])
def test_scores_are_finite_at_extremes(u, f_divergence):
    leaf = torch.tensor([u], requires_grad=True)
    score = f_divergence_score(leaf, f_divergence=f_divergence)
    score.backward()
    assert torch.isfinite(score).all()
    assert torch.isfinite(leaf.grad).all()


def test_lengths_only_matter_where_they_belong():
    lengths = {"lengths_chosen": torch.tensor([4.0]), "lengths_rejected": torch.tensor([2.0])}
    four = (-3.0, -5.0, -2.0, -6.0)
    for loss_type in names.DPO_LOSS_TYPES:
        if loss_type == "sigmoid_norm":
            continue
        same = loss(four, loss_type, **lengths) == loss(four, loss_type)
        assert same == (loss_type not in names.DPO_OPTIONS["length_norm"])


@pytest.mark.parametrize(
    ("loss_type", "options", "words"),
    [
        ("sigmiod", {}, "Did you mean 'sigmoid'"),
        ("sft", {}, "not known"),
        ("hinge", {"label_smoothing": 0.1}, "no meaning for loss_type 'hinge'"),
        ("robust", {"label_smoothing": 0.5}, "must lie in"),
        ("sigmoid", {"label_smoothing": -0.1}, "must lie in"),
        ("exo_pair", {}, "set it above 0"),
        ("apo_zero", {"f_divergence": "forward_kl"}, "f_divergence has no meaning"),
        ("sigmoid", {"f_divergence": "chi2"}, "f_divergence is 'chi2'"),
    ],
)
def test_wrong_options(loss_type, options, words):
    with pytest.raises(ConfigError, match=words):
        check_dpo_options(loss_type, **options)
    four = [torch.zeros(1)] * 4
    with pytest.raises(ConfigError, match=words):
        dpo_loss(*four, loss_type=loss_type, **options)


def test_wrong_lengths():
    four = [torch.zeros(1)] * 4
    with pytest.raises(ConfigError, match="Only one of"):
        dpo_loss(*four, loss_type="ipo", lengths_chosen=torch.ones(1))
    with pytest.raises(ConfigError, match="sigmoid_norm"):
        dpo_loss(*four, loss_type="sigmoid_norm")
