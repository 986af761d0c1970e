"""Every number of tests/vectors.json for losses on given rows, value and gradient, to 1e-9.

The numbers were computed in float64, without torch and without this code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from strop import losses as L
from strop.records import Term

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


DPO = {
    "dpo_sigmoid_beta0.1": {"beta": 0.1},
    "dpo_sigmoid_beta0.5": {},
    "dpo_cdpo_eps0.1": {"label_smoothing": 0.1},
    "dpo_robust_eps0.1": {"loss_type": "robust", "label_smoothing": 0.1},
    "dpo_hinge": {"loss_type": "hinge"},
    "dpo_ipo_sum": {"loss_type": "ipo"},
    "dpo_ipo_avg": {"loss_type": "ipo", "lengths": True},
    "dpo_sigmoid_norm": {"loss_type": "sigmoid_norm", "lengths": True},
    "dpo_exo_pair_eps1e-3": {"loss_type": "exo_pair", "label_smoothing": 1e-3},
    "dpo_nca_pair": {"loss_type": "nca_pair"},
    "dpo_bco_pair": {"loss_type": "bco_pair"},
    "dpo_sppo_hard": {"loss_type": "sppo_hard"},
    "dpo_apo_zero": {"loss_type": "apo_zero"},
    "dpo_apo_down": {"loss_type": "apo_down"},
    "dpo_discopop_tau0.05": {"loss_type": "discopop"},
    "dpo_aot": {"loss_type": "aot"},
    "dpo_aot_unpaired": {"loss_type": "aot_unpaired"},
    "dpo_f_forward_kl": {"f_divergence": "forward_kl"},
    "dpo_f_js": {"f_divergence": "js_divergence"},
    "dpo_f_alpha0.5": {"f_divergence": "alpha_divergence", "f_alpha": 0.5},
    "dpo_exponential": {"loss_type": "exponential"},
}


def dpo_options(name: str, pairs: dict[str, torch.Tensor]) -> dict[str, Any]:
    options = {"beta": 0.5} | DPO[name]
    if options.pop("lengths", False):
        options |= {"lengths_chosen": pairs["chosen_lengths"], "lengths_rejected": pairs["rejected_lengths"]}
    return options


@pytest.mark.parametrize("name", DPO)
def test_dpo(name, vectors, pairs, value_and_grads):
    expected, options = vectors[name], dpo_options(name, pairs)

    def per_pair(chosen, rejected):
        return L.dpo_loss(chosen, rejected, pairs["ref_chosen"], pairs["ref_rejected"], **options)

    value, (grad_chosen, grad_rejected) = value_and_grads(
        lambda *x: per_pair(*x).mean(), pairs["chosen"], pairs["rejected"]
    )
    close(value, expected["loss"])
    close(per_pair(pairs["chosen"], pairs["rejected"]), expected["per_pair"])
    close(grad_chosen, expected["grad_chosen"])
    if "grad_rejected" in expected:
        close(grad_rejected, expected["grad_rejected"])


def test_dpo_sft_term(vectors, pairs, value_and_grads):
    value, (grad,) = value_and_grads(
        lambda x: L.step_loss([Term(L.nll_loss(x), "chosen_tokens")], {"chosen_tokens": 6}), pairs["chosen_tokens"]
    )
    close(value, vectors["dpo_sft_term"]["loss"])
    close(grad, [vectors["dpo_sft_term"]["grad_per_token"]] * 6)


def test_dpo_mpo(vectors, pairs):
    sums = pairs["chosen"], pairs["rejected"], pairs["ref_chosen"], pairs["ref_rejected"]
    terms = [
        Term(L.dpo_loss(*sums, beta=0.5), "trees", 0.8),
        Term(L.dpo_loss(*sums, beta=0.5, loss_type="bco_pair"), "trees", 0.2),
        Term(L.nll_loss(pairs["chosen_tokens"]), "chosen_tokens", 1.0),
    ]
    close(L.step_loss(terms, {"trees": 3, "chosen_tokens": 6}), vectors["dpo_mpo_0.8_0.2_1.0"]["loss"])


def test_dpo_ld(vectors, pairs):
    lengths = torch.stack([pairs["chosen_lengths"], pairs["rejected_lengths"]], dim=1).reshape(-1)
    shared = L.shared_lengths(lengths)
    sums = {
        name: L.ld_logps(pairs[f"{name}_tokens"], pairs[f"{side}_segment"], 3, shared[offset::2], alpha=0.5)
        for side, offset in {"chosen": 0, "rejected": 1}.items()
        for name in (side, f"ref_{side}")
    }
    gap = sums["chosen"] - sums["ref_chosen"] - sums["rejected"] + sums["ref_rejected"]
    close(gap, vectors["dpo_ld_alpha0.5"]["delta"])
    loss = L.dpo_loss(sums["chosen"], sums["rejected"], sums["ref_chosen"], sums["ref_rejected"], beta=0.5)
    close(loss.mean(), vectors["dpo_ld_alpha0.5"]["loss"])


@pytest.mark.parametrize(("name", "clamp"), [("dpo_wpo", False), ("dpo_wpo_clamped", True)])
def test_dpo_wpo(name, clamp, vectors, pairs, value_and_grads):
    alignment = {
        side: L.wpo_alignment(pairs[f"{side}_tokens"], pairs[f"{side}_square"], pairs[f"{side}_segment"], 3)
        for side in ("chosen", "rejected")
    }
    weights = L.wpo_weights(alignment["chosen"], alignment["rejected"], clamp=clamp)
    close(weights, vectors[name]["weights"])
    value, (grad,) = value_and_grads(
        lambda x: (
            weights * L.dpo_loss(x, pairs["rejected"], pairs["ref_chosen"], pairs["ref_rejected"], beta=0.5)
        ).mean(),
        pairs["chosen"],
    )
    close(value, vectors[name]["loss"])
    close(grad, vectors["dpo_wpo"]["grad_chosen"])
    close(L.wpo_weights(t(0.2), t(0.1), clamp=clamp), 1.0 if clamp else 1.3498588075760032)


KTO = {
    "kto_beta0.1": ({"beta": 0.1}, 1.0),
    "kto_beta0.5_lD1.333": ({"beta": 0.5, "desirable_weight": 4 / 3}, 1.0),
    "kto_negKL_clamped": ({"beta": 0.1}, -1.0),
    "kto_apo_zero_unpaired_beta0.1": ({"beta": 0.1, "loss_type": "apo_zero_unpaired"}, 1.0),
}
KTO_RATIOS, KTO_LABELS, KTO_MISMATCHED = t(0.3, -0.7, -0.1, 0.5), torch.tensor([1, 0, 1, 0]), t(0.4, -0.4, 0.7, -0.1)


@pytest.mark.parametrize("name", KTO)
def test_kto(name, vectors, value_and_grads):
    options, sign = KTO[name]
    point = L.kto_reference_point((sign * KTO_MISMATCHED).sum(), 4)
    expected = vectors[name]
    value, (grad,) = value_and_grads(lambda u: L.kto_loss(u, KTO_LABELS, point, **options).mean(), KTO_RATIOS)
    close(value, expected["loss"])
    close(grad, expected["grad_policy_logp"])
    if "z0" in expected:
        close(point, expected["z0"])
        close(L.kto_loss(KTO_RATIOS, KTO_LABELS, point, **options), expected["per_example"])


def class_mean(values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    good = labels.bool()
    counts = {"desirable": int(good.sum()), "undesirable": int((~good).sum())}
    return L.step_loss(L.class_terms(values, labels), counts)


def test_kto_literal(vectors):
    with pytest.warns(UserWarning, match="tests only"):
        v = L.kto_loss(KTO_RATIOS, KTO_LABELS, None, beta=0.5, loss_type="kto_literal")
    close(v, vectors["kto_literal_beta0.5"]["v"])
    close(class_mean(v, KTO_LABELS), vectors["kto_literal_beta0.5"]["loss"])


def test_kto_exp(vectors, value_and_grads):
    expected = vectors["kto_exp_repaired_beta0.5"]

    def loss(u):
        return L.kto_loss(u, KTO_LABELS, 0.0, beta=0.5, loss_type="kto_exp")

    close(1 - loss(KTO_RATIOS), expected["v"])
    value, (grad,) = value_and_grads(lambda u: class_mean(loss(u), KTO_LABELS), KTO_RATIOS)
    close(value, expected["loss"])
    close(grad, expected["grad_policy_logp"])


def test_orpo(vectors, pairs, value_and_grads):
    chosen = pairs["chosen"] / pairs["chosen_lengths"]
    rejected = pairs["rejected"] / pairs["rejected_lengths"]
    expected = vectors["orpo_or_term_lambda0.1"]
    value, (grad_w, grad_l) = value_and_grads(lambda w, r: L.orpo_loss(w, r, beta=0.1).mean(), chosen, rejected)
    close(value, expected["loss"])
    close(L.log_odds_ratio(chosen, rejected), expected["log_odds"])
    close(grad_w, expected["grad_avg_chosen"])
    close(grad_l, expected["grad_avg_rejected"])

    odds = Term(L.orpo_loss(chosen, rejected, beta=0.1), "trees")
    nll = Term(L.nll_loss(pairs["chosen_tokens"]), "nll_tokens")
    close(L.step_loss([nll], {"nll_tokens": 6}), vectors["orpo_total_completion_nll"]["nll"])
    close(L.step_loss([odds, nll], {"trees": 3, "nll_tokens": 6}), vectors["orpo_total_completion_nll"]["loss"])
    whole = vectors["orpo_total_prompt+completion_nll"]
    nll.values = L.nll_loss(torch.cat([t(*flat(whole["prompt_logps"])), pairs["chosen_tokens"]]))
    close(L.step_loss([nll], {"nll_tokens": 10}), whole["nll"])
    close(L.step_loss([odds, nll], {"trees": 3, "nll_tokens": 10}), whole["loss"])


def test_cpo_sigmoid(vectors, pairs, value_and_grads):
    expected = vectors["cpo_sigmoid_beta0.1_alpha1"]
    value, (grad, _) = value_and_grads(lambda w, r: L.cpo_loss(w, r).mean(), pairs["chosen"], pairs["rejected"])
    close(value, expected["pref"])
    close(grad, expected["grad_chosen_sum_pref"])
    terms = [
        Term(L.cpo_loss(pairs["chosen"], pairs["rejected"]), "trees"),
        Term(L.nll_loss(pairs["chosen_tokens"]), "chosen_tokens", 1.0),
    ]
    close(L.step_loss(terms, {"trees": 3, "chosen_tokens": 6}), expected["loss"])
    close(L.step_loss(terms[1:], {"chosen_tokens": 6}), expected["nll"])


def test_cpo_hinge_and_ipo(vectors, pairs):
    sums = pairs["chosen"], pairs["rejected"]
    lengths = {"lengths_chosen": pairs["chosen_lengths"], "lengths_rejected": pairs["rejected_lengths"]}
    close(L.cpo_loss(*sums, loss_type="hinge").mean(), vectors["cpo_hinge_beta0.1"]["loss"])
    ipo = L.cpo_loss(*sums, beta=0.5, loss_type="ipo", **lengths)
    close(ipo.mean(), vectors["cpo_ipo_avg_beta0.5"]["loss"])


def test_simpo(vectors, pairs, value_and_grads):
    expected = vectors["simpo_beta2_gamma1"]
    averages = pairs["chosen"] / pairs["chosen_lengths"], pairs["rejected"] / pairs["rejected_lengths"]
    options = {"beta": 2.0, "simpo_gamma": 1.0, "loss_type": "simpo"}
    value, (grad_w, grad_l) = value_and_grads(lambda w, r: L.cpo_loss(w, r, **options).mean(), *averages)
    close(value, expected["loss"])
    close(grad_w, expected["grad_avg_chosen"])
    close(-grad_l, expected["grad_avg_chosen"])
    lengths = {"lengths_chosen": pairs["chosen_lengths"], "lengths_rejected": pairs["rejected_lengths"]}
    close(L.cpo_loss(pairs["chosen"], pairs["rejected"], **options, **lengths), expected["per_pair"])


def test_alphapo(vectors, pairs, value_and_grads):
    expected = vectors["alphapo_a.25_b2.5_g.1"]
    averages = pairs["chosen"] / pairs["chosen_lengths"], pairs["rejected"] / pairs["rejected_lengths"]
    options = {"beta": 2.5, "simpo_gamma": 0.1, "alpha": 0.25, "loss_type": "alphapo"}
    value, (grad_w, grad_l) = value_and_grads(lambda w, r: L.cpo_loss(w, r, **options).mean(), *averages)
    close(value, expected["loss"])
    close(grad_w, expected["grad_avg_chosen"])
    close(grad_l, expected["grad_avg_rejected"])
    margin = 2.5 * (L.cpo_score(averages[0], alpha=0.25) - L.cpo_score(averages[1], alpha=0.25)) - 0.1
    close(margin, expected["margin"])


@pytest.mark.parametrize(
    ("name", "temperature"), [("cpo_contrastive_hidden_T1.0", 1.0), ("cpo_contrastive_hidden_T0.1", 0.1)]
)
def test_contrastive_hidden(name, temperature, vectors):
    chosen, rejected, anchor = t(1, 0)[None], t(0.6, 0.8)[None], t(0.8, 0.6)[None]
    expected = vectors[name]
    close(L.contrastive_hidden_loss(chosen, rejected, anchor, temperature=temperature), expected["loss"])
    close(torch.cosine_similarity(torch.cat([chosen, rejected]), anchor), expected["sim"])
    # Along the anchor's tangent at the unit vector h, d sim / d h . anchor = 1 - sim^2: the gradient to sim follows.
    for index, hidden in enumerate((chosen, rejected)):
        leaf = hidden.clone().requires_grad_()
        both = [chosen, rejected]
        both[index] = leaf
        L.contrastive_hidden_loss(*both, anchor, temperature=temperature).backward()
        close((leaf.grad @ anchor[0]) / (1 - expected["sim"][index] ** 2), expected["grad_sim"][index])


BCO_1 = (t(0.03, -0.01, -0.07), torch.tensor([1, 1, 0]))
BCO_2 = (t(0.10, -0.20, 0.05, -0.06), torch.tensor([1, 0, 0, 0]))


def test_bco_pooled(vectors):
    state = L.PooledMean()
    steps = {"bco_batch1_pooled_cumulative(TRL)": BCO_1, "bco_batch2_pooled_cumulative(TRL)": BCO_2}
    for name, (rewards, labels) in steps.items():
        expected = vectors[name]
        state = L.cumulative_pooled(state, L.class_sums(rewards, labels))
        close(state.delta, expected["delta"])
        close(L.bco_loss(rewards, labels, state.delta).mean(), expected["loss"])


def test_bco_balanced(vectors):
    state = L.BalancedMean()
    steps = {"bco_batch1_balanced_ema0.9(paper)": BCO_1, "bco_batch2_balanced_ema0.9(paper)": BCO_2}
    for name, (rewards, labels) in steps.items():
        expected = vectors[name]
        state = L.ema_balanced(state, L.class_sums(rewards, labels), decay=0.9)
        close(state.delta, expected["delta"])
        close(L.bco_loss(rewards, labels, state.delta).mean(), expected["loss"])


def test_bco_udm(vectors, value_and_grads):
    expected = vectors["bco_batch2_UDM"]
    rewards, labels = BCO_2
    weights = torch.cat(
        [t(123.0), L.density_ratio_weights(t(*expected["p_desirable"]))]
    )  # 123: not read where desirable
    close(weights[1:], expected["weights"])
    value, (grad,) = value_and_grads(
        lambda r: L.bco_loss(r, labels, expected["delta"], weights=weights).mean(), rewards
    )
    close(value, expected["loss"])
    close(grad, expected["grad_reward"])


def test_bco_discriminator(vectors):
    expected = vectors["bco_discriminator"]
    ratios = t(*expected["logratios"]["pos"], *expected["logratios"]["neg"])
    labels = torch.tensor([True, True, False])
    close(torch.sigmoid(ratios), expected["D_pos"] + expected["D_neg"])
    close(class_mean(L.discriminator_loss(ratios, labels), labels), expected["loss"])


REWARD = {
    "reward_bt": {},
    "reward_bt_margin": {"margin": t(0.5, 0.0)},
    "reward_bt_center0.01": {"center_coefficient": 0.01},
    "reward_bt_margin_center0.01": {"margin": t(0.5, 0.0), "center_coefficient": 0.01},
}


@pytest.mark.parametrize("name", REWARD)
def test_reward(name, vectors, value_and_grads):
    value, (grad_w, grad_l) = value_and_grads(
        lambda w, r: L.reward_loss(w, r, **REWARD[name]).mean(), t(1.2, -0.3), t(0.4, 0.1)
    )
    close(value, vectors[name]["loss"])
    close(grad_w, vectors[name]["grad_chosen"])
    close(grad_l, vectors[name]["grad_rejected"])


SFT_MICRO_BATCHES = (t(-0.5, -1.0, -0.25), t(-2.0, -0.1, -0.4, -0.7, -1.3))


def test_sft_token_mean(vectors):
    expected = vectors["sft_global_token_mean"]
    shares = [L.step_loss([Term(L.nll_loss(x), "tokens")], {"tokens": 8}) for x in SFT_MICRO_BATCHES]
    close(sum(shares), expected["loss"])
    wrong = [L.step_loss([Term(L.nll_loss(x), "tokens")], {"tokens": x.numel()}) for x in SFT_MICRO_BATCHES]
    close(sum(wrong) / 2, expected["mean_of_means"])


def test_sft_dft(vectors, value_and_grads):
    expected = vectors["sft_dft"]
    value, (grad,) = value_and_grads(
        lambda x: L.step_loss([Term(L.dft_loss(x), "tokens")], {"tokens": 8}), torch.cat(SFT_MICRO_BATCHES)
    )
    close(value, expected["loss"])
    close(grad, expected["grad_per_token"])


def test_prm(vectors, value_and_grads):
    logits, labels = torch.tensor([[0.2, 1], [0.5, -0.5], [-1, 0.3]], dtype=F64), torch.tensor([1, 0, 1])
    expected = vectors["prm_ce"]
    value, (grad,) = value_and_grads(lambda z: L.stepwise_loss(z, labels).mean(), logits)
    close(value, expected["loss"])
    close(grad, expected["grad_logits"])
    close(L.stepwise_loss(logits, labels), expected["per_step"])
    close(L.step_probabilities(logits), expected["p_good"])
    last = L.last_steps(torch.zeros(3, dtype=torch.int64), 1)
    close(L.stepwise_loss(logits[last], labels[last]).mean(), vectors["prm_last_step_only"]["loss"])


def test_pair_fixture(vectors, pairs):
    fixture = vectors["fixture_P"]
    for name in ("chosen", "rejected", "ref_chosen", "ref_rejected"):
        close(pairs[name], fixture[f"{name}_sum"])
        segment = pairs[f"{name.removeprefix('ref_')}_segment"]
        close(L.segment_sum(pairs[f"{name}_tokens"], segment, 3), fixture[f"{name}_sum"])
    close(pairs["chosen"] - pairs["ref_chosen"], fixture["chosen_logratio"])
    close(pairs["rejected"] - pairs["ref_rejected"], fixture["rejected_logratio"])


GKD = {
    "gkd_beta0_T1": (0.0, 1.0),
    "gkd_beta0.1_T1": (0.1, 1.0),
    "gkd_beta0.5_T1": (0.5, 1.0),
    "gkd_beta0.9_T1": (0.9, 1.0),
    "gkd_beta1_T1": (1.0, 1.0),
    "gkd_beta1_T2": (1.0, 2.0),
    "gkd_beta0.5_T2": (0.5, 2.0),
}


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", GKD)
def test_gkd(name, fused, vectors, value_and_grads):
    beta, temperature = GKD[name]
    student = torch.tensor([[1, 0, -1], [0, 0.2, 0.1]], dtype=F64)
    teacher = torch.tensor([[0.5, 0.5, -0.5], [2, -1, 0]], dtype=F64)

    def loss(z: torch.Tensor, **options: Any) -> torch.Tensor:
        if not fused:
            return L.jsd_loss(z, teacher, beta=beta, temperature=temperature, **options).mean()
        eye = torch.eye(3, dtype=F64)
        return L.fused_jsd(
            z, eye, None, teacher, eye, None, beta=beta, temperature=temperature, chunk=1, **options
        ).mean()

    value, (grad,) = value_and_grads(loss, student)
    close(value, vectors[name]["loss"])
    close(grad, vectors[name]["grad_student_logits"])
    close(loss(student, scale_by_t2=True), vectors[name]["times_T2"])


def test_no_vector_is_left_out(vectors):
    sources = "".join(
        path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.glob("test_vectors_*.py"))
    )
    assert [name for name in vectors if f'"{name}"' not in sources] == []
