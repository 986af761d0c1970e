"""Softmax statistics in place, against torch's own log-softmax."""

from __future__ import annotations

import pytest
import torch

from strop.model import softmax
from strop.model.lm_head import Reading
from strop.model.softmax import TokenStatistics, softmax_residual_
from strop.records import Want

EVERYTHING = Want.LOGPS | Want.ENTROPY | Want.TOP1 | Want.MEAN_LOGIT | Want.LOG_SQUARE


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("block_bytes", [1, 4 << 20])
def test_statistics_and_residual(temperature: float, block_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(softmax, "_CPU_BLOCK_BYTES", block_bytes)
    torch.manual_seed(0)
    logits = 3 * torch.randn(7, 11, dtype=torch.float64)
    targets = torch.randint(11, (7,))
    targets[2] = logits[2].argmax()
    log_p = (logits / temperature).log_softmax(-1)
    into = TokenStatistics.empty(7, EVERYTHING, logits)
    residual = softmax_residual_(logits.clone(), targets, into, Reading(temperature=temperature))
    onehot = torch.nn.functional.one_hot(targets, 11)
    assert torch.allclose(residual, log_p.exp() - onehot, atol=1e-14)
    assert torch.allclose(into.logps, log_p.gather(1, targets[:, None])[:, 0], atol=1e-14)
    assert torch.allclose(into.lse, (logits / temperature).logsumexp(1), atol=1e-14)
    assert torch.allclose(into.entropy, -(log_p.exp() * log_p).sum(1), atol=1e-14)
    assert torch.allclose(into.log_square, (2 * log_p).logsumexp(1), atol=1e-13)
    assert torch.allclose(into.mean_logit, logits.mean(1), atol=1e-14)
    assert torch.equal(into.top1, logits.argmax(1) == targets) and into.top1[2]


@pytest.mark.parametrize("bonus", [False, True])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_the_gradient_of_raw_logits(softcap: float | None, bonus: bool) -> None:
    torch.manual_seed(0)
    raw, bias = 3 * torch.randn(7, 11, dtype=torch.float64), torch.randn(11, dtype=torch.float64)
    targets, (g, e) = torch.randint(11, (7,)), torch.randn(2, 7, dtype=torch.float64)
    leaf = raw.clone().requires_grad_()
    logits = 0.5 * (leaf + bias)
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    log_p = (logits / 0.8).log_softmax(-1)
    loss = (g * log_p.gather(1, targets[:, None])[:, 0]).sum()
    loss = loss - (e * (log_p.exp() * log_p).sum(1)).sum() if bonus else loss
    (expected,) = torch.autograd.grad(loss, leaf)

    reading, into = Reading(0.5, softcap, 0.8, bias), TokenStatistics.empty(7, EVERYTHING, raw)
    anchors = raw.new_empty(7, 3)
    softmax.statistics(raw, targets, into, anchors, reading)
    scales = reading.scales(g, e if bonus else None, into.entropy)
    rounded = torch.empty_like(raw, dtype=torch.float32)  # once, at the end
    softmax.gradient(raw, targets, anchors, rounded, reading, **scales)
    assert torch.equal(
        rounded, softmax.gradient(raw, targets, anchors, torch.empty_like(raw), reading, **scales).float()
    )
    for out in (torch.empty_like(raw), raw):  # raw itself last: it holds the residual
        assert softmax.gradient(raw, targets, anchors, out, reading, **scales) is out
        assert torch.allclose(out, expected, atol=1e-13)


def test_the_gradient_of_a_confident_token_survives_rounding_to_bfloat16() -> None:
    logits = torch.tensor([[12.0, 0.0, 0.0]])
    residual = softmax_residual_(logits, torch.tensor([0]), TokenStatistics.empty(1, Want(0), logits), Reading())
    exact = -2 / (2 + torch.tensor(12.0, dtype=torch.float64).exp())
    assert residual[0, 0].bfloat16().double() == pytest.approx(float(exact), rel=2e-2)
    assert (1 - residual[0, 1:].sum()).bfloat16() == 1.0  # softmax itself would round to 1, its residual to 0


def test_extreme_logits_stay_finite() -> None:
    logits = torch.tensor([[0.0, 1e4], [-1e4, 0.0]])
    into = TokenStatistics.empty(2, EVERYTHING, logits)
    residual = softmax_residual_(logits, torch.tensor([0, 1]), into, Reading())
    assert into.logps.tolist() == [-1e4, 0.0]
    assert into.entropy.tolist() == [0.0, 0.0] and into.log_square.tolist() == [0.0, 0.0]
    assert residual.tolist() == [[-1.0, 1.0], [0.0, 0.0]]


def test_blocks_on_other_devices_are_larger(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU a block stays in the cache; elsewhere it only bounds what copies of it take."""
    sizes: list[tuple[str, int]] = []
    monkeypatch.setattr(
        softmax, "_block_", lambda z, *rest: sizes.append((z.device.type, z.numel() * z.element_size()))
    )
    for device in ("cpu", "meta"):  # a device of another kind, whose tensors hold nothing
        logits = torch.empty(40_000 if device == "meta" else 400, 4_000, device=device)
        targets = torch.zeros(len(logits), dtype=torch.int64, device=device)
        softmax_residual_(logits, targets, TokenStatistics.empty(len(logits), Want(0), logits), Reading())
    for device, bound in (("cpu", 4 << 20), ("meta", 256 << 20)):
        found = [size for name, size in sizes if name == device]
        assert len(found) > 1 and max(found) <= bound < 1.1 * max(found)
    assert sum(size for _, size in sizes) == (40_000 + 400) * 4_000 * 4
