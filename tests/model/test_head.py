"""The scored-rows head: kept, chunked, called through a module, or computed plainly, the numbers are the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import strop.model.head as head_module
from strop.model.head import _Options, call_through, score_logits, score_tokens
from strop.model.lm_head import LMHead
from strop.records import Want

N, H, V = 23, 6, 40
EVERYTHING = Want.LOGPS | Want.ENTROPY | Want.TOP1 | Want.MEAN_LOGIT | Want.LOG_SQUARE


class Wrapped(nn.Module):
    """A layer that has to be called, as LoRA's and quantised ones have to."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def parts(bias: bool, dtype: torch.dtype = torch.float64) -> tuple[nn.Linear, torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    layer = nn.Linear(H, V, bias=bias, dtype=dtype)
    nn.init.normal_(layer.weight, std=1.0)
    return layer, torch.randn(N, H, dtype=dtype, requires_grad=True), torch.randint(V, (N,))


def plain(head: LMHead, layer: nn.Linear, hidden: torch.Tensor, targets: torch.Tensor, temperature: float) -> Any:
    logits = layer(hidden).to(torch.promote_types(layer.weight.dtype, torch.float32)) * head.scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    log_p = (logits / temperature).log_softmax(-1)
    return log_p.gather(1, targets[:, None])[:, 0], -(log_p.exp() * log_p).sum(1), logits.mean(1)


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("softcap", [None, 4.0])
@pytest.mark.parametrize("head_bytes", [1, 5 * V * 8 * 3, 9 * V * 8 * 6, None])
@pytest.mark.parametrize("grad_entropy", [False, True])
def test_every_path_equals_the_plain_one(
    wrapped: bool, softcap: float | None, head_bytes: int | None, grad_entropy: bool
) -> None:
    layer, hidden, targets = parts(bias=True)
    head = LMHead(Wrapped(layer) if wrapped else layer, scale=0.7, softcap=softcap)
    logps, entropy, mean_logit = plain(head, layer, hidden, targets, 0.8)
    weights = torch.linspace(-1, 2, N, dtype=torch.float64)
    inputs = [hidden, layer.weight, layer.bias]
    expected = torch.autograd.grad((weights * (logps + (0.3 * entropy if grad_entropy else 0))).sum(), inputs)

    out = score_tokens(
        head, hidden, targets, EVERYTHING, temperature=0.8, head_bytes=head_bytes, grad_entropy=grad_entropy
    )
    assert torch.allclose(out["logps"], logps, atol=1e-12)
    assert torch.allclose(out["entropy"], entropy, atol=1e-12)
    assert torch.allclose(out["mean_logit"], mean_logit, atol=1e-12)
    value = (weights * (out["logps"] + (0.3 * out["entropy"] if grad_entropy else 0))).sum()
    for retain in (True, False):  # the buffers of the first backward must survive it
        grads = torch.autograd.grad(value, inputs, retain_graph=retain)
        for a, b in zip(grads, expected, strict=True):
            assert torch.allclose(a, b, atol=1e-12)


@pytest.mark.parametrize("grad_entropy", [False, True])
@pytest.mark.parametrize("softcap", [None, 4.0])
def test_what_backward_needs_of_a_bfloat16_head_is_kept_in_bfloat16(softcap: float | None, grad_entropy: bool) -> None:
    layer, hidden, targets = parts(bias=False, dtype=torch.bfloat16)
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (saved.append(x), x)[1], lambda x: x):
        score_tokens(LMHead(layer, softcap=softcap), hidden, targets, grad_entropy=grad_entropy)
    assert [x.dtype for x in saved if x.shape == (N, V)] == [torch.bfloat16]


def test_chunks_are_planned_within_the_budget() -> None:
    layer, _, _ = parts(bias=False)
    straight = _Options(LMHead(layer), Want.LOGPS, 1.0, 100 * 1000 * 4, False)
    assert straight.plan(100, 1000, torch.float32, True) == (100, True)
    assert straight.plan(101, 1000, torch.float32, True) == (100, False)
    assert straight.plan(1000, 1000, torch.float32, False) == (100, False)
    rows, keep = straight.plan(120, 1000, torch.bfloat16, True)
    assert (rows, keep) == (66, False)  # 240 kB of residuals leave 26 rows beside them: too few to work with
    assert straight.plan(40, 1000, torch.bfloat16, True) == (40, True)
    bent = _Options(LMHead(layer, softcap=5.0), Want.LOGPS, 1.0, 100 * 1000 * 4, False)
    rows, keep = bent.plan(101, 1000, torch.float32, True)
    assert rows == 16 and not keep
    assert straight.plan(0, 1000, torch.float32, True)[0] == 1


@pytest.mark.parametrize("head_bytes", [1, None])
def test_bfloat16_states_give_exact_products(head_bytes: int | None) -> None:
    layer, hidden, targets = parts(bias=False, dtype=torch.bfloat16)
    exact_layer = nn.Linear(H, V, bias=False, dtype=torch.float64)
    exact_layer.weight.data = layer.weight.data.double()
    exact_hidden = hidden.detach().double().requires_grad_()
    logps, _, _ = plain(LMHead(exact_layer), exact_layer, exact_hidden, targets, 1.0)
    expected = torch.autograd.grad(logps.sum(), [exact_hidden, exact_layer.weight])
    out = score_tokens(LMHead(layer), hidden, targets, head_bytes=head_bytes)["logps"]
    assert out.dtype == torch.float32
    assert torch.allclose(out.double(), logps, atol=1e-5)  # logits are not rounded to bfloat16
    grads = torch.autograd.grad(out.sum(), [hidden, layer.weight])
    for a, b in zip(grads, expected, strict=True):
        assert a.dtype == torch.bfloat16
        assert float((a.double() - b).norm() / b.norm()) < 5e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_units_for_bfloat16_serve_the_gradient_of_bfloat16_states(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for units in (False, True):
        monkeypatch.setattr(head_module, "multiplies_bfloat16", lambda units=units: units)
        layer, hidden, targets = parts(bias=False, dtype=dtype)
        logps = score_tokens(LMHead(layer), hidden, targets)["logps"]
        weights = torch.linspace(0.1, 1.0, len(logps))
        found.append([logps.detach(), *torch.autograd.grad((logps * weights).sum(), [layer.weight, hidden])])
    assert all(map(torch.equal, found[0][:2], found[1][:2]))
    plain, narrow = (gradients[2].double() for gradients in found)
    assert torch.equal(plain, narrow) == (dtype == torch.float32)
    assert float((plain - narrow).norm() / plain.norm()) < 5e-3


def test_frozen_weights_get_no_gradient_and_no_buffer() -> None:
    layer, hidden, targets = parts(bias=False)
    layer.requires_grad_(False)
    out = score_tokens(LMHead(layer), hidden, targets)["logps"]
    out.sum().backward()
    assert layer.weight.grad is None and hidden.grad is not None
    with torch.no_grad():
        assert score_tokens(LMHead(layer), hidden, targets)["logps"].grad_fn is None


def test_no_rows() -> None:
    for wrap in (False, True):
        layer, hidden, targets = parts(bias=True)
        head = LMHead(Wrapped(layer) if wrap else layer)
        out = score_tokens(head, hidden[:0], targets[:0], EVERYTHING)
        assert all(column.shape == (0,) for column in out.values())
        grads = torch.autograd.grad(out["logps"].sum(), [hidden, layer.weight, layer.bias], allow_unused=True)
        assert all(g is None or not g.any() for g in grads)


def test_the_layer_is_called_so_that_hooks_run() -> None:
    layer, hidden, targets = parts(bias=False)
    calls = []
    layer.register_forward_pre_hook(lambda module, args: calls.append("before"))
    layer.register_forward_hook(lambda module, args, out: calls.append("after"))
    score_tokens(LMHead(layer), hidden, targets)
    assert calls == ["before", "after"]
    assert "forward" not in vars(layer)
    with pytest.raises(ZeroDivisionError):
        call_through(layer, lambda x: 1 / 0, hidden)
    assert "forward" not in vars(layer)


def test_logits_of_the_models_own() -> None:
    layer, hidden, targets = parts(bias=False)
    logps, entropy, _ = plain(LMHead(layer), layer, hidden, targets, 0.5)
    out = score_logits(layer(hidden), targets, EVERYTHING, temperature=0.5)
    assert torch.allclose(out["logps"], logps, atol=1e-12) and torch.allclose(out["entropy"], entropy, atol=1e-12)
    a, b = (torch.autograd.grad(x.sum(), layer.weight, retain_graph=True)[0] for x in (out["logps"], logps))
    assert torch.allclose(a, b, atol=1e-12)


@pytest.mark.parametrize("ruled_out", [-torch.inf, torch.finfo(torch.float32).min])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tokens_that_a_model_rules_out_have_no_share_in_the_entropy(ruled_out: float, dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    left = torch.randn(5, V - 8, dtype=torch.float64)
    logits = torch.cat([left, torch.full((5, 8), ruled_out, dtype=torch.float64)], 1).to(dtype).requires_grad_()
    out = score_logits(logits, torch.arange(5), Want.LOGPS | Want.ENTROPY, temperature=0.5, grad_entropy=True)
    left.requires_grad_()
    log_p = (left / 0.5).log_softmax(1)
    logps, entropy = log_p[range(5), range(5)], -(log_p.exp() * log_p).sum(1)
    assert torch.allclose(out["logps"].double(), logps, atol=1e-5)
    assert torch.allclose(out["entropy"].double(), entropy, atol=1e-5)
    (grad,) = torch.autograd.grad((out["logps"] + 0.3 * out["entropy"]).sum(), logits)
    (right,) = torch.autograd.grad((logps + 0.3 * entropy).sum(), left)
    assert torch.allclose(grad[:, :-8].double(), right, atol=1e-5) and float(grad[:, -8:].abs().max()) < 1e-30


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_bytes", [1, 40 * 400 * 8, None])
@pytest.mark.parametrize("grad_entropy", [False, True])
def test_a_cap_on_tokens_that_hardly_ever_come(dtype: torch.dtype, head_bytes: int | None, grad_entropy: bool) -> None:
    """Their probability is lost beside the 1 of their residual, and a rounded one tells nothing of the slope."""
    torch.manual_seed(4)
    layer = nn.Linear(16, 400, bias=False, dtype=dtype)
    nn.init.normal_(layer.weight, std=1.5)
    hidden = torch.randn(40, 16).to(dtype).requires_grad_()
    wide = nn.Linear(16, 400, bias=False, dtype=torch.float64)
    wide.weight.data = layer.weight.data.double()
    states = hidden.detach().double().requires_grad_()
    targets = wide(states).argmin(1)  # down to e^-25
    head = LMHead(wide, softcap=13.0)
    logps, entropy, _ = plain(head, wide, states, targets, 1.0)
    assert float(logps.detach().min()) < -20
    bonus = 0.3 if grad_entropy else 0.0
    expected = torch.autograd.grad((logps + bonus * entropy).sum(), [states, wide.weight])
    out = score_tokens(
        LMHead(layer, softcap=13.0), hidden, targets, Want.ENTROPY, head_bytes=head_bytes, grad_entropy=grad_entropy
    )
    grads = torch.autograd.grad((out["logps"] + bonus * out["entropy"]).sum(), [hidden, layer.weight])
    for a, b in zip(grads, expected, strict=True):
        assert float((a.double() - b).norm() / b.norm()) < {torch.float32: 1e-4}.get(dtype, 1e-2)
