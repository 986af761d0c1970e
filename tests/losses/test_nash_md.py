"""Nash-MD's estimates are proved unbiased (and TRL's biased) in test_enumeration.py."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strop.errors import ConfigError
from strop.losses import adversarial_loss, geometric_mixture_logps, names, nash_md_loss, nash_md_loss_flat

PROPERTY = settings(max_examples=30, deadline=None, derandomize=True)
LOGITS = st.lists(st.floats(-5, 5), min_size=4, max_size=4)


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@PROPERTY
@given(
    st.lists(st.lists(st.integers(0, 1), min_size=4, max_size=4), min_size=1, max_size=4),
    st.sampled_from(names.NASH_MD_FORMS),
    st.integers(0, 99),
)
def test_flat_equals_masked_rows(mask_rows, form, seed):
    mask = torch.tensor(mask_rows)
    keep = mask.bool()
    logps, ref = random(*mask.shape, seed=seed), random(*mask.shape, seed=seed + 1)
    preferences = torch.rand(mask.shape[0], generator=torch.Generator().manual_seed(seed))
    found = nash_md_loss(
        logps.masked_fill(~keep, torch.nan), ref.masked_fill(~keep, torch.nan), preferences, mask, form=form
    )
    flat = nash_md_loss_flat(logps[keep], ref[keep], preferences, mask.nonzero()[:, 0], mask.shape[0], form=form)
    assert torch.equal(found[keep], flat)
    assert (found[~keep] == 0).all()


@pytest.mark.parametrize("form", names.NASH_MD_FORMS)
def test_indifference_without_kl_has_no_gradient(form):
    logps = random(5, seed=1).requires_grad_()
    segment = torch.tensor([0, 0, 0, 1, 1])
    loss = nash_md_loss_flat(logps, random(5, seed=2), torch.full((2,), 0.5), segment, 2, beta=0.0, form=form)
    loss.sum().backward()
    assert (logps.grad == 0).all()


def test_forms_agree_for_completions_of_one_token():
    arguments = random(3, seed=1), random(3, seed=2), torch.tensor([0.1, 0.5, 0.9]), torch.arange(3), 3
    first, *others = (nash_md_loss_flat(*arguments, form=form) for form in names.NASH_MD_FORMS)
    for other in others:
        torch.testing.assert_close(other, first)


def test_winning_completions_go_up():
    logps = torch.zeros(2, requires_grad=True)
    nash_md_loss_flat(logps, torch.zeros(2), torch.tensor([0.9, 0.2]), torch.tensor([0, 1]), 2).sum().backward()
    assert logps.grad.tolist() == pytest.approx([-0.4, 0.3])


@PROPERTY
@given(LOGITS, LOGITS, st.floats(0, 1), st.floats(-50, 50))
def test_mixture(logits, ref_logits, eta, constant):
    z, z_ref = torch.tensor(logits, dtype=torch.float64), torch.tensor(ref_logits, dtype=torch.float64)
    mixed = geometric_mixture_logps(z, z_ref, mixture_coef=eta)
    assert float(mixed.exp().sum()) == pytest.approx(1.0)
    torch.testing.assert_close(geometric_mixture_logps(z + constant, z_ref, mixture_coef=eta), mixed)
    torch.testing.assert_close(geometric_mixture_logps(z, z_ref - constant, mixture_coef=eta), mixed)
    torch.testing.assert_close(geometric_mixture_logps(z_ref, z, mixture_coef=1 - eta), mixed)
    torch.testing.assert_close(geometric_mixture_logps(z, z_ref, mixture_coef=0.0), z.log_softmax(0))
    torch.testing.assert_close(geometric_mixture_logps(z, z_ref, mixture_coef=1.0), z_ref.log_softmax(0))


def test_mixture_at_its_ends_ignores_the_other_models_bans():
    banned = torch.tensor([0.0, -torch.inf, 1.0])
    free = torch.tensor([0.3, 0.2, 0.1])
    assert torch.isfinite(geometric_mixture_logps(free, banned, mixture_coef=0.0)).all()
    assert torch.isfinite(geometric_mixture_logps(banned, free, mixture_coef=1.0)).all()
    assert float(geometric_mixture_logps(free, banned, mixture_coef=0.5).exp()[1]) == 0.0


def test_adversarial_gradient():
    logps = torch.tensor([-3.0, -5.0], requires_grad=True)
    loss = adversarial_loss(logps, torch.tensor([-2.0, -6.0]), torch.tensor([1.0, 0.0]), beta=0.5, baseline=0.25)
    loss.sum().backward()
    assert logps.grad.tolist() == pytest.approx([-(1.0 + 0.5 - 0.25), -(0.0 - 0.5 - 0.25)])


def test_wrong_options():
    with pytest.raises(ConfigError, match="form is 'token'"):
        nash_md_loss_flat(torch.zeros(1), torch.zeros(1), torch.zeros(1), torch.tensor([0]), 1, form="token")
    with pytest.raises(ConfigError, match="mixture_coef"):
        geometric_mixture_logps(torch.zeros(2), torch.zeros(2), mixture_coef=1.5)
