"""The head as it runs on a card, on a CPU: half-precision products in float32 and the two kernels, both emulated."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.model.test_head import EVERYTHING, Wrapped, plain
from tests.support import kernels_by_hand
from tests.support.kernels_by_hand import card, emulated_mm  # noqa: F401
from torch import nn

import strop.model.head as head_module
from strop.model import head_kernels, head_trial, products
from strop.model.head import _HeadWork, _Options, score_tokens
from strop.model.lm_head import LMHead
from strop.records import Want
from strop.testing.cases import make_trainer, rows_for, step_gradients
from strop.testing.scene import move

N, H, V = 11, 8, 41
BUDGETS = {"one row at a time": 1, "chunks": 5 * V * 4 * 2, "whole": None}
BOUNDS = {torch.float32: 2e-5, torch.bfloat16: 1e-2, torch.float16: 1.5e-3}
"""Relative error of a gradient, which is rounded to the dtype of what it is of."""


def parts(dtype: torch.dtype, bias: bool = True) -> tuple[nn.Linear, torch.Tensor, torch.Tensor]:
    torch.manual_seed(5)
    layer = nn.Linear(H, V, bias=bias, dtype=dtype)
    nn.init.normal_(layer.weight, std=1.0)
    return layer, torch.randn(N, H).to(dtype).requires_grad_(), torch.randint(V, (N,))


def exact(head: LMHead, layer: nn.Linear, hidden: torch.Tensor, targets: torch.Tensor, coefficient: float) -> Any:
    """Log-probs, entropy, mean logit and gradients in float64, of the same rounded weights and states."""
    wide = nn.Linear(H, V, bias=layer.bias is not None, dtype=torch.float64)
    wide.load_state_dict({name: value.double() for name, value in layer.state_dict().items()})
    states = hidden.detach().double().requires_grad_()
    logps, entropy, mean = plain(head, wide, states, targets, 0.8)
    grads = torch.autograd.grad(objective(logps, entropy, coefficient), [states, *wide.parameters()])
    return logps, entropy, mean, grads


def objective(logps: torch.Tensor, entropy: torch.Tensor, coefficient: float) -> torch.Tensor:
    weights = torch.linspace(-1, 2, N, dtype=logps.dtype)
    weights[3] = 0.0  # a token that is not learned from
    return (weights * (logps + coefficient * entropy)).sum() if coefficient else (weights * logps).sum()


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("kernels", [False, True])
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("softcap", [None, 4.0])
@pytest.mark.parametrize("coefficient", [0.0, 0.3])
@pytest.mark.parametrize("wrapped", [False, True])
def test_every_path_on_a_card_is_the_exact_one(
    dtype: torch.dtype, kernels: bool, budget: str, softcap: float | None, coefficient: float, wrapped: bool, card: Any  # noqa: F811
) -> None:  # fmt: skip
    card(kernels=kernels)
    layer, hidden, targets = parts(dtype)
    head = LMHead(Wrapped(layer) if wrapped else layer, scale=0.7, softcap=softcap)
    logps, entropy, mean, expected = exact(head, layer, hidden, targets, coefficient)
    out = score_tokens(
        head, hidden, targets, EVERYTHING, temperature=0.8, head_bytes=BUDGETS[budget], grad_entropy=bool(coefficient)
    )
    rounds = wrapped and dtype != torch.float32  # the layer's own logits, which are its dtype's
    near = {"rtol": 0, "atol": 0.1 if rounds else 1e-5}
    torch.testing.assert_close(out["logps"].double(), logps, **near)
    torch.testing.assert_close(out["entropy"].double(), entropy, **near)
    torch.testing.assert_close(out["mean_logit"].double(), mean, **near)
    value = objective(out["logps"], out["entropy"], coefficient)
    for retain in (True, False):  # what the first backward used must survive it
        grads = torch.autograd.grad(value, [hidden, *layer.parameters()], retain_graph=retain)
        for a, b in zip(grads, expected, strict=True):
            assert float((a.double() - b).norm() / b.norm()) < BOUNDS[dtype] * (4 if rounds else 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_card_does_not_widen_the_matrix(dtype: torch.dtype, card: Any) -> None:  # noqa: F811
    layer, hidden, targets = parts(dtype)
    options = _Options(LMHead(layer), Want.LOGPS, 1.0, 1 << 20, False)
    some = (hidden.detach(), layer.weight.detach(), None, targets, dtype, options)
    assert _HeadWork(*some).weight.dtype == torch.float32  # as on a CPU
    card()
    assert _HeadWork(*some).weight.dtype == dtype and _HeadWork(*some).narrow is None


def test_without_the_operator_matrices_are_widened(card: Any, caplog: pytest.LogCaptureFixture) -> None:  # noqa: F811
    def absent(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("mm(out_dtype) is not here")

    def rounded(a: torch.Tensor, b: torch.Tensor, *, out_dtype: torch.dtype, out: Any = None) -> torch.Tensor:
        result = emulated_mm(a, b, out_dtype=out_dtype).to(a.dtype).float()
        return result if out is None else out.copy_(result)

    for mm, said in ((absent, "is not here"), (rounded, "relative error")):
        caplog.clear()
        card(mm=mm)
        layer, hidden, targets = parts(torch.bfloat16)
        head = LMHead(layer)
        with caplog.at_level(logging.WARNING):
            logps = score_tokens(head, hidden, targets, temperature=0.8)["logps"]
        assert said in caplog.text and "widening" in caplog.text and len(caplog.records) == 1
        torch.testing.assert_close(logps.double(), exact(head, layer, hidden, targets, 0.0)[0], rtol=0, atol=1e-5)


def test_products_are_tried_as_the_head_uses_them(card: Any) -> None:  # noqa: F811
    card()
    device = torch.device("cpu")
    for dtype in (torch.bfloat16, torch.float16):
        assert products.difference_to_exact(device, dtype) == "" and products.stays_narrow(device, dtype)
    assert products.stays_narrow(device, torch.float32) and not products.stays_narrow(device, torch.int8)

    def elsewhere(a: torch.Tensor, b: torch.Tensor, *, out_dtype: torch.dtype, out: Any = None) -> torch.Tensor:
        return emulated_mm(a, b, out_dtype=out_dtype)

    card(mm=elsewhere)
    assert "not where it was asked for" in products.difference_to_exact(device, torch.bfloat16)


@pytest.mark.parametrize("kernels", [False, True])
@pytest.mark.parametrize("kind", ["weight", "bias"])
def test_shares_of_many_chunks_are_added_up_in_float32(kernels: bool, kind: str, card: Any) -> None:  # noqa: F811
    """Each share is a hundredth of what bfloat16 can still add to the sum: rounded, the gradient would stand still."""
    card(kernels=kernels)
    count = 700
    layer = nn.Linear(H, V, dtype=torch.bfloat16)
    nn.init.normal_(layer.weight, std=0.1)
    nn.init.zeros_(layer.bias)
    hidden, targets = torch.ones(count, H, dtype=torch.bfloat16), torch.zeros(count, dtype=torch.int64)
    found = []
    for head_bytes in (1, None):
        logps = score_tokens(LMHead(layer), hidden, targets, head_bytes=head_bytes)["logps"]
        found.append(torch.autograd.grad(logps.sum(), getattr(layer, kind))[0].double())
    wide = nn.Linear(H, V, dtype=torch.float64)
    wide.load_state_dict({name: value.double() for name, value in layer.state_dict().items()})
    logps = wide(hidden.double()).log_softmax(1)[:, 0]
    (right,) = torch.autograd.grad(logps.sum(), getattr(wide, kind))
    for each in found:
        assert float((each - right).norm() / right.norm()) < 5e-3
    shares = torch.full((count,), float(right.flatten()[0]) / count).bfloat16()
    total = torch.zeros((), dtype=torch.bfloat16)
    for share in shares:
        total = total + share
    assert float(total) < 0.5 * float(right.flatten()[0])  # what the sum would have been in bfloat16


def test_shares_of_chunks_through_a_called_layer_are_added_up_in_float32() -> None:
    """Under autocast, where chunks that shared a rounded copy of the weight would add up in its dtype."""
    count, layer = 700, nn.Linear(H, V, bias=False)
    nn.init.normal_(layer.weight, std=0.1)
    layer.weight.data = layer.weight.data.bfloat16().float()
    hidden, targets = torch.ones(count, H), torch.zeros(count, dtype=torch.int64)
    with torch.autocast("cpu", torch.bfloat16):
        logps = score_tokens(LMHead(Wrapped(layer)), hidden, targets, head_bytes=V * 4 * 16)["logps"]
    (found,) = torch.autograd.grad(logps.sum(), layer.weight)
    logps = nn.functional.linear(hidden, layer.weight).log_softmax(1)[:, 0]
    (right,) = torch.autograd.grad(logps.sum(), layer.weight)
    assert float((found - right).norm() / right.norm()) < 1e-2


def test_kernels_are_for_cards_with_triton_and_right_there(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    device = torch.device("cpu")
    assert head_trial.kernels_for(device, torch.float32) is None
    monkeypatch.setattr(head_trial, "on_card", lambda device: True)
    monkeypatch.setattr(head_kernels, "triton", None)
    assert head_trial.kernels_for(device, torch.float32) is None
    monkeypatch.setattr(head_kernels, "triton", object())
    monkeypatch.setattr(head_kernels, "statistics", kernels_by_hand.statistics)
    monkeypatch.setattr(head_kernels, "gradient", kernels_by_hand.gradient)
    kernels_by_hand.forget()
    assert head_trial.kernels_for(device, torch.bfloat16) is head_kernels and not caplog.records
    assert head_trial.kernels_for(device, torch.float64) is None

    def late(*args: Any, **kwargs: Any) -> torch.Tensor:
        return kernels_by_hand.gradient(*args, **kwargs).mul_(1.1)

    monkeypatch.setattr(head_kernels, "gradient", late)
    kernels_by_hand.forget()
    with caplog.at_level(logging.WARNING):
        assert head_trial.kernels_for(device, torch.bfloat16) is None
        assert head_trial.kernels_for(device, torch.float32) is None
    assert "slower eager code" in caplog.text and len(caplog.records) == 1
    monkeypatch.undo()
    kernels_by_hand.forget()


def broken(name: str) -> Any:
    """The emulated kernels with one fault."""

    class Broken:
        @staticmethod
        def statistics(raw: Any, targets: Any, into: Any, anchors: Any, reading: Any) -> None:
            kernels_by_hand.statistics(raw, targets, into, anchors, reading)
            if name in ("logps", "lse", "entropy", "log_square", "mean_logit") and getattr(into, name) is not None:
                getattr(into, name).mul_(1.001)
            if name == "top1" and into.top1 is not None:
                into.top1.logical_not_()

        @staticmethod
        def gradient(raw: Any, targets: Any, anchors: Any, out: Any, reading: Any, **scales: Any) -> Any:
            if name == "the factor":
                scales["factor"] = None
            if name == "the entropy's share":
                scales["bonus"] = None
            kernels_by_hand.gradient(raw, targets, anchors, out, reading, **scales)
            if name == "the last columns":
                out[:, -(raw.shape[1] % 4096) :] = 0.0
            if name == "an exception":
                raise RuntimeError("no compiler")
            return out

    return Broken


@pytest.mark.parametrize(
    "fault",
    ["logps", "lse", "entropy", "log_square", "mean_logit", "top1", "the factor", "the entropy's share",
     "the last columns", "an exception"],
)  # fmt: skip
def test_the_trial_of_the_kernels_finds(fault: str) -> None:
    assert head_trial.difference_to_eager(broken("nothing"), torch.device("cpu")) == ""
    assert head_trial.difference_to_eager(broken(fault), torch.device("cpu")) != ""


def test_no_rows_on_a_card(card: Any) -> None:  # noqa: F811
    card()
    layer, hidden, targets = parts(torch.bfloat16)
    out = score_tokens(LMHead(layer), hidden[:0], targets[:0], EVERYTHING)
    grads = torch.autograd.grad(out["logps"].sum(), [hidden, *layer.parameters()])
    assert all(column.shape == (0,) for column in out.values()) and not any(g.any() for g in grads)


@pytest.mark.parametrize(
    ("verb", "arch", "settings", "bound"),
    [
        ("dpo", "llama", {}, 1e-5),
        ("sft", "gemma2", {"head_memory_mb": 1}, 1e-5),
        ("dpo", "gemma2", {"bf16": True}, 2e-2),
    ],
)
def test_a_step_on_a_card_is_the_step_on_a_cpu(
    verb: str, arch: str, settings: dict[str, Any], bound: float, tmp_path: Path, card: Any  # noqa: F811
) -> None:  # fmt: skip
    def gradients() -> dict[str, torch.Tensor]:
        trainer = make_trainer(verb, tmp_path, rows=rows_for(verb, 4), arch=arch, dtype=torch.float32, **settings)
        move(trainer.model, seed=1)
        return step_gradients(trainer)

    right = gradients()
    card()
    assert head_module.kernels_for(torch.device("cpu"), torch.float32) is kernels_by_hand
    found = gradients()
    size = torch.cat([g.flatten() for g in right.values()]).norm()
    assert found.keys() == right.keys()
    for name, gradient in right.items():
        assert float((found[name] - gradient).norm()) <= bound * float(size), name


def test_plans_of_kernels_are_leaner() -> None:
    layer = nn.Linear(H, 1000, bias=False)
    bent = _Options(LMHead(layer, softcap=5.0), Want.LOGPS, 1.0, 100 * 1000 * 4, False)
    assert bent.plan(1000, 1000, torch.bfloat16, True, False) == (16, False)  # six terms in float32
    assert bent.plan(1000, 1000, torch.bfloat16, True, True) == (66, False)  # logits and their gradient
    assert bent.plan(30, 1000, torch.bfloat16, True, True) == (30, True)  # logits are kept, not residuals
