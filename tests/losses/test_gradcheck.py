"""Finite differences against autograd in float64, for every member of every family.

Losses with a stop-gradient are functions of two things, the log-probs and the frozen numbers. `frozen` records what
`Tensor.detach` returns at the base point and replays it, so that the finite differences move the first only.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from strop import losses as L
from strop.losses import names

Loss = Callable[..., torch.Tensor]


def made(*shape: int, seed: int, low: float = -2.0, high: float = 2.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(*shape, generator=generator, dtype=torch.float64)


def frozen(f: Loss, *base: torch.Tensor) -> Loss:
    memory: list[torch.Tensor] = []
    plain = torch.Tensor.detach

    def run(replay: bool, *inputs: torch.Tensor) -> torch.Tensor:
        calls = iter(memory)

        def detach(tensor: torch.Tensor) -> torch.Tensor:
            if replay:
                return next(calls)
            memory.append(plain(tensor).clone())
            return memory[-1]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.Tensor, "detach", detach)
            return f(*inputs)

    run(False, *base)
    return lambda *inputs: run(True, *inputs)


def check(f: Loss, *inputs: torch.Tensor) -> None:
    leaves = [x.clone().requires_grad_() for x in inputs]
    out = f(*leaves)
    assert torch.isfinite(out).all()
    assert any(g.abs().sum() > 0 for g in torch.autograd.grad(out.sum(), leaves, allow_unused=True) if g is not None)
    assert torch.autograd.gradcheck(frozen(f, *inputs), leaves, eps=1e-6, atol=1e-6)


PAIR = (made(5, seed=1), made(5, seed=2))
REFS = (made(5, seed=3), made(5, seed=4))
LENGTHS = {"lengths_chosen": torch.tensor([3.0, 2, 1, 5, 4]), "lengths_rejected": torch.tensor([4.0, 1, 2, 5, 3])}
LABELS = torch.tensor([1, 0, 1, 1, 0])


DPO = [(name, 0.1 if name == "exo_pair" else 0.0) for name in names.DPO_LOSS_TYPES]
DPO += [(name, 0.2) for name in names.DPO_OPTIONS["label_smoothing"]]


@pytest.mark.parametrize(("loss_type", "smoothing"), DPO)
def test_dpo(loss_type, smoothing):
    options = {"label_smoothing": smoothing}
    lengths = LENGTHS if loss_type in names.DPO_OPTIONS["length_norm"] else {}
    check(lambda w, r: L.dpo_loss(w, r, *REFS, beta=0.7, loss_type=loss_type, **options, **lengths), *PAIR)
    if loss_type == "ipo":
        check(lambda w, r: L.dpo_loss(w, r, *REFS, beta=0.7, loss_type=loss_type), *PAIR)


@pytest.mark.parametrize("f_divergence", names.F_DIVERGENCES)
@pytest.mark.parametrize("loss_type", names.DPO_OPTIONS["f_divergence"])
def test_dpo_f_divergence(loss_type, f_divergence):
    options = {"label_smoothing": 0.1} if loss_type in ("robust", "exo_pair") else {}
    lengths = LENGTHS if loss_type in names.DPO_OPTIONS["length_norm"] else {}
    check(
        lambda w, r: L.dpo_loss(
            w, r, *REFS, beta=0.3, loss_type=loss_type, f_divergence=f_divergence, f_alpha=0.3, **options, **lengths
        ),
        *PAIR,
    )


def test_dpo_weights_and_damped_lengths():
    segment = torch.tensor([0, 0, 0, 1, 1, 2, 3, 3])
    shared = L.shared_lengths(torch.tensor([3, 2, 1, 2]))
    check(lambda x: L.ld_logps(x, segment, 4, shared, alpha=0.3), made(8, seed=5))
    square = made(8, seed=6)

    def weighted(x: torch.Tensor) -> torch.Tensor:
        alignment = L.wpo_alignment(x, square, segment, 4)
        sums = L.segment_sum(x, segment, 4)
        loss = L.dpo_loss(sums[::2], sums[1::2], REFS[0][:2], REFS[1][:2])
        return L.wpo_weights(alignment[::2], alignment[1::2], clamp=False) * loss

    check(weighted, made(8, seed=5))


@pytest.mark.parametrize("loss_type", names.KTO_LOSS_TYPES)
@pytest.mark.filterwarnings("ignore:kto_literal")
def test_kto(loss_type):
    options = {"desirable_weight": 1.3, "undesirable_weight": 0.7}
    check(lambda u: L.kto_loss(u, LABELS, torch.tensor(0.2), beta=0.6, loss_type=loss_type, **options), PAIR[0])


def test_orpo():
    check(L.orpo_loss, made(5, seed=7, low=-3, high=-0.01), made(5, seed=8, low=-3, high=-0.01))


CPO = [(name, 0.0) for name in names.CPO_LOSS_TYPES]
CPO += [(name, alpha) for name in names.CPO_OPTIONS["alpha"] for alpha in (0.25, -0.5)]


@pytest.mark.parametrize(("loss_type", "alpha"), CPO)
def test_cpo(loss_type, alpha):
    lengths = LENGTHS if loss_type in names.CPO_AVERAGED_TYPES else {}
    smoothing = 0.1 if loss_type in names.CPO_OPTIONS["label_smoothing"] else 0.0
    options = {"loss_type": loss_type, "alpha": alpha, "label_smoothing": smoothing}
    check(lambda w, r: L.cpo_loss(w, r, beta=0.8, **options, **lengths), *PAIR)


@pytest.mark.parametrize("negatives", names.CONTRASTIVE_NEGATIVES)
def test_contrastive_hidden(negatives):
    anchor = made(3, 4, seed=9)
    check(
        lambda w, r: L.contrastive_hidden_loss(w, r, anchor, temperature=0.5, negatives=negatives),
        made(3, 4, seed=10),
        made(3, 4, seed=11),
    )
    check(lambda h: L.pool_hidden(h, torch.tensor([0, 0, 2]), 3), made(3, 4, seed=12))


def test_bco():
    weights = made(5, seed=13, low=0.5, high=3)
    check(lambda r: L.bco_loss(r, LABELS, torch.tensor(0.1), weights=weights), PAIR[0])
    check(lambda u: L.discriminator_loss(u, LABELS, beta=0.4), PAIR[0])


def test_reward_and_steps():
    check(lambda w, r: L.reward_loss(w, r, margin=REFS[0], center_coefficient=0.1), *PAIR)
    soft = made(5, seed=14, low=0, high=1)
    check(lambda z: L.stepwise_loss(z, soft), made(5, 2, seed=15))


@pytest.mark.parametrize("loss_type", names.SFT_LOSS_TYPES)
def test_sft(loss_type):
    check(lambda x: L.sft_loss(x, loss_type=loss_type), made(6, seed=16, low=-3, high=0))


SEGMENT = torch.tensor([0, 0, 0, 1, 2, 2])
LOGPS = made(6, seed=17, low=-3, high=0)
MOVED = {
    "old_logps": LOGPS + made(6, seed=18, low=-0.5, high=0.5),
    "advantages": torch.tensor([1.0, 1.0, 1.0, -1.5, -0.5, -0.5], dtype=torch.float64),
}
POLICY_OPTIONS: dict[str, dict[str, object]] = {
    "plain": {},
    "kl": {"beta": 0.3, "ref_logps": made(6, seed=19, low=-3, high=0)},
    "corrected kl": {"beta": 0.3, "ref_logps": made(6, seed=19, low=-3, high=0), "use_bias_correction_kl": True},
    "sampler": {"sampler_logps": MOVED["old_logps"] + made(6, seed=20, low=-0.3, high=0.3)},
    "keep": {"keep": torch.tensor([1, 0, 1, 1, 1, 0])},
}


POLICY = [
    (name, level)
    for level in names.IMPORTANCE_SAMPLING_LEVELS
    for name in names.POLICY_OPTIONS[f"importance_sampling_level={level}"]
]


@pytest.mark.parametrize("option", POLICY_OPTIONS)
@pytest.mark.parametrize(("loss_type", "level"), POLICY)
def test_policy(loss_type, level, option):
    options = POLICY_OPTIONS[option] | {"importance_sampling_level": level}
    for old_logps in (MOVED["old_logps"], None):
        check(
            lambda x, old=old_logps: L.policy_loss_flat(
                x, old, MOVED["advantages"], SEGMENT, 3, loss_type=loss_type, **options
            ),
            LOGPS,
        )


@pytest.mark.parametrize("estimator", names.KL_ESTIMATORS)
def test_kl(estimator):
    check(lambda x: L.kl_estimate(x, MOVED["old_logps"], estimator=estimator), LOGPS)


def test_whole_completions():
    advantages = torch.tensor([1.0, -1.0, 0.3, 0.1, -0.4])
    check(lambda x: L.rloo_loss(x, PAIR[0] + 0.1, advantages), PAIR[0])
    check(lambda x: L.reinforce_loss(x, advantages), PAIR[0])
    check(lambda x: L.adversarial_loss(x, PAIR[1], advantages, beta=0.2), PAIR[0])


def test_value_loss():
    check(lambda v: L.value_loss(v, PAIR[1], REFS[0]), PAIR[0])


@pytest.mark.parametrize("form", names.NASH_MD_FORMS)
def test_nash_md(form):
    preferences = torch.tensor([0.7, 0.2, 0.5], dtype=torch.float64)
    check(lambda x: L.nash_md_loss_flat(x, MOVED["old_logps"], preferences, SEGMENT, 3, form=form), LOGPS)


@pytest.mark.parametrize("loss_type", names.XPO_LOSS_TYPES)
def test_xpo(loss_type):
    wins = torch.tensor([True, False, True, True, False])
    check(lambda y, o: L.xpo_loss(y, REFS[0], o, REFS[1], wins, beta=0.4, alpha=0.1, loss_type=loss_type), *PAIR)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_jsd(beta):
    teacher = made(4, 5, seed=21)
    check(lambda z: L.jsd_loss(z, teacher, beta=beta, temperature=1.7), made(4, 5, seed=22))
    weight, teacher_weight = made(7, 3, seed=23), made(7, 4, seed=24)
    check(
        lambda h, w, b: L.fused_jsd(
            h, w, b, made(5, 4, seed=25), teacher_weight, made(7, seed=26), beta=beta, temperature=1.3, chunk=2
        ),
        made(5, 3, seed=27),
        weight,
        made(7, seed=28),
    )


def test_entropy_bonus():
    check(lambda h: L.entropy_bonus(h, keep=torch.tensor([1, 0, 1, 1, 1])), made(5, seed=29, low=0, high=3))
