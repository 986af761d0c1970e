from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from strop.errors import ConfigError
from strop.losses import fused_jsd, jsd_loss, nll_loss

PROPERTY = settings(max_examples=30, deadline=None, derandomize=True)
ROW = st.lists(st.floats(-6, 6), min_size=5, max_size=5)
BETAS = [0.0, 0.1, 0.5, 0.9, 1.0]


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@PROPERTY
@given(ROW, ROW, st.sampled_from([0.0, 1.0]) | st.floats(1e-6, 1 - 1e-6), st.floats(-30, 30))
def test_divergence(student, teacher, beta, constant):
    s, t = torch.tensor([student], dtype=torch.float64), torch.tensor([teacher], dtype=torch.float64)
    value = jsd_loss(s, t, beta=beta)
    assert float(value) >= -1e-15
    torch.testing.assert_close(jsd_loss(s + constant, t - constant, beta=beta), value, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(jsd_loss(t, s, beta=1 - beta), value, rtol=1e-9, atol=1e-12)
    assert float(jsd_loss(s, t, beta=0.5)) <= math.log(2) + 1e-12


@pytest.mark.parametrize("beta", BETAS)
def test_equal_distributions(beta):
    teacher = random(3, 5, seed=1)
    student = teacher.clone().requires_grad_()
    loss = jsd_loss(student, teacher, beta=beta)
    loss.sum().backward()
    assert loss.abs().max() < 1e-15
    assert student.grad.abs().max() < 1e-15


def test_ends_are_the_kl_divergences_and_not_the_limits():
    student, teacher = random(3, 5, seed=1), random(3, 5, seed=2)
    p, q = teacher.softmax(1), student.softmax(1)
    torch.testing.assert_close(jsd_loss(student, teacher, beta=0.0), (p * (p / q).log()).sum(1))
    torch.testing.assert_close(jsd_loss(student, teacher, beta=1.0), (q * (q / p).log()).sum(1))
    small = 1e-6
    assert jsd_loss(student, teacher, beta=small).max() < 1e-5
    torch.testing.assert_close(
        jsd_loss(student, teacher, beta=small) / small, jsd_loss(student, teacher, beta=0.0), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("beta", BETAS)
def test_high_temperature(beta):
    """T^2 times the divergence tends to a multiple of half the variance of the difference of logits."""
    student, teacher = random(3, 50, seed=1), random(3, 50, seed=2)
    half_variance = 0.5 * (teacher - student).var(dim=1, unbiased=False)
    factor = 1.0 if beta in (0.0, 1.0) else beta * (1 - beta)
    found = jsd_loss(student, teacher, beta=beta, temperature=1e3, scale_by_t2=True)
    torch.testing.assert_close(found, factor * half_variance, rtol=1e-2, atol=0)


def test_one_hot_teacher_is_the_likelihood():
    student = random(2, 5, seed=1)
    teacher = torch.full((2, 5), -torch.inf)
    teacher[0, 3] = teacher[1, 1] = 0.0
    logps = student.log_softmax(1)
    expected = nll_loss(torch.stack([logps[0, 3], logps[1, 1]]))
    torch.testing.assert_close(jsd_loss(student, teacher.double(), beta=0.0), expected)


@pytest.mark.parametrize("beta", BETAS)
def test_impossible_tokens_stay_finite(beta):
    student = torch.tensor([[0.0, -torch.inf, 1.0, 0.5]], requires_grad=True)
    teacher = torch.tensor([[0.3, -torch.inf, -0.4, 0.1]])
    loss = jsd_loss(student, teacher, beta=beta)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(student.grad).all()
    without = [0, 2, 3]
    torch.testing.assert_close(loss.detach(), jsd_loss(student.detach()[:, without], teacher[:, without], beta=beta))


def test_no_gradient_to_the_teacher():
    teacher = random(2, 4, seed=1).requires_grad_()
    student = random(2, 4, seed=2).requires_grad_()
    jsd_loss(student, teacher).sum().backward()
    assert teacher.grad is None


def heads(dtype: torch.dtype = torch.float64):
    student = [random(7, 3, seed=1, dtype=dtype), random(11, 3, seed=2, dtype=dtype), random(11, seed=3, dtype=dtype)]
    teacher = [random(7, 4, seed=4, dtype=dtype), random(11, 4, seed=5, dtype=dtype), random(11, seed=6, dtype=dtype)]
    return student, teacher


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
@pytest.mark.parametrize("beta", BETAS)
def test_fused_equals_plain(beta, chunk, bias):
    student, teacher = heads()
    student, teacher = (x if bias else [*x[:2], None] for x in (student, teacher))
    options = {"beta": beta, "temperature": 1.3, "scale_by_t2": True}
    weights = random(7, seed=7)
    grads = []
    for fused in (True, False):
        leaves = [None if x is None else x.clone().requires_grad_() for x in student]
        if fused:
            loss = fused_jsd(*leaves, *teacher, chunk=chunk, **options)
        else:
            logits = torch.nn.functional.linear(*leaves), torch.nn.functional.linear(*teacher)
            loss = jsd_loss(*logits, **options)
        tensors = [x for x in leaves if x is not None]
        grads.append([loss, *torch.autograd.grad((weights * loss).sum(), tensors)])
    for fused, plain in zip(*grads, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-10, atol=1e-12)


def test_fused_gives_no_gradient_to_what_is_frozen():
    student, teacher = heads()
    hidden, weight = student[0].clone().requires_grad_(), student[1].clone()
    teacher_leaves = [x.clone().requires_grad_() for x in teacher]
    fused_jsd(hidden, weight, None, *teacher_leaves).sum().backward()
    assert hidden.grad is not None
    assert weight.grad is None
    assert all(x.grad is None for x in teacher_leaves)


def test_fused_accumulates_in_float32_and_returns_the_inputs_dtype():
    student, teacher = heads(torch.bfloat16)
    leaves = [x.clone().requires_grad_() for x in student]
    loss = fused_jsd(*leaves, *teacher, chunk=2)
    loss.sum().backward()
    assert loss.dtype == torch.float32
    assert all(x.grad.dtype == torch.bfloat16 for x in leaves)
    wide = [x.float().requires_grad_() for x in student]
    logits = torch.nn.functional.linear(*wide), torch.nn.functional.linear(*[x.float() for x in teacher])
    expected = jsd_loss(*logits)
    expected.sum().backward()
    torch.testing.assert_close(loss, expected, rtol=0.1, atol=0.05)
    for leaf, reference in zip(leaves, wide, strict=True):
        torch.testing.assert_close(leaf.grad.float(), reference.grad, rtol=0.1, atol=0.05)


def test_fused_under_autocast():
    student, teacher = heads(torch.float32)
    leaves = [x.clone().requires_grad_() for x in student]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = fused_jsd(*leaves, *teacher, chunk=2)
    loss.sum().backward()
    plain = fused_jsd(*student, *teacher, chunk=2)
    assert not torch.equal(loss, plain)
    torch.testing.assert_close(loss, plain, rtol=0.1, atol=0.05)
    assert all(x.grad.dtype == torch.float32 for x in leaves)


class LargestTensor(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor))])
        return out


@pytest.mark.parametrize("beta", BETAS)
def test_fused_never_holds_the_logits_of_all_tokens(beta):
    tokens, vocabulary, width, chunk = 64, 50, 4, 8
    hidden = random(tokens, width, seed=1).requires_grad_()
    weight = random(vocabulary, width, seed=2).requires_grad_()
    teacher = random(tokens, width, seed=3), random(vocabulary, width, seed=4), None
    with LargestTensor() as largest:
        fused_jsd(hidden, weight, None, *teacher, beta=beta, chunk=chunk).sum().backward()
    assert largest.numel <= chunk * vocabulary
    with LargestTensor() as plain:
        jsd_loss(hidden @ weight.T, teacher[0] @ teacher[1].T, beta=beta).sum().backward()
    assert plain.numel >= tokens * vocabulary  # the probe sees what it should


def test_no_tokens():
    student, teacher = heads()
    hidden = torch.zeros(0, 3, dtype=torch.float64, requires_grad=True)
    weight = student[1].clone().requires_grad_()
    loss = fused_jsd(hidden, weight, None, torch.zeros(0, 4, dtype=torch.float64), teacher[1], None)
    loss.sum().backward()
    assert loss.shape == (0,)
    assert (weight.grad == 0).all()
    assert jsd_loss(torch.zeros(0, 3), torch.zeros(0, 3)).shape == (0,)


@pytest.mark.parametrize(
    "options", [{"beta": -0.1}, {"beta": 1.1}, {"temperature": 0.0}, {"temperature": -1.0}, {"chunk": 0}]
)
def test_out_of_range(options):
    student, teacher = heads()
    with pytest.raises(ConfigError, match=next(iter(options))):
        fused_jsd(*student, *teacher, **options)
    if "chunk" not in options:
        with pytest.raises(ConfigError, match=next(iter(options))):
            jsd_loss(student[0], student[0], **options)
