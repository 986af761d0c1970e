"""What a card does for the language-model head, on a CPU: products of half precision in float32, and the kernels.

`emulated_mm` is `torch.mm(..., out_dtype=torch.float32)` as PyTorch documents it. `statistics` and `gradient` are the
two kernels of `strop.model.head_kernels` by their docstrings, in float64, by plain operators. The tests of the kernels
themselves hold Triton's interpreter to the same numbers; here the head is run that calls them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import strop.model.head as head_module
from strop.model import head_trial, products

NAMES = ("logps", "lse", "entropy", "top1", "log_square", "mean_logit")


def emulated_mm(a: torch.Tensor, b: torch.Tensor, *, out_dtype: torch.dtype, out: Any = None) -> torch.Tensor:
    assert a.dtype == b.dtype and a.dtype in (torch.bfloat16, torch.float16) and out_dtype == torch.float32
    assert a.dim() == b.dim() == 2 and not (torch.is_grad_enabled() and (a.requires_grad or b.requires_grad))
    with paused():
        result = a.float() @ b.float()
        if out is None:
            return result
        assert out.dtype == torch.float32 and out.shape == result.shape
        return out.copy_(result)


def paused() -> Any:
    """What emulates a card is no operator of it: modes that count operators leave it out."""
    return torch.utils._python_dispatch._disable_current_modes()


def read(raw: torch.Tensor, reading: Any) -> torch.Tensor:
    z = raw.double()
    if reading.bias is not None:
        z = z + reading.bias.double()
    z = z * reading.scale
    return z if reading.softcap is None else reading.softcap * torch.tanh(z / reading.softcap)


def statistics(raw: torch.Tensor, targets: torch.Tensor, into: Any, anchors: torch.Tensor, reading: Any) -> None:
    check(raw, targets, anchors)
    with paused():
        z = read(raw, reading)
        x = z / reading.temperature
        log_p, at = x.log_softmax(1), targets[:, None]
        plogp = torch.where(log_p > -torch.inf, log_p.exp() * log_p, 0.0)
        found = {
            "logps": log_p.gather(1, at)[:, 0],
            "lse": x.logsumexp(1),
            "entropy": -plogp.sum(1),
            "top1": x.argmax(1) == targets,
            "log_square": (2 * log_p).logsumexp(1),
            "mean_logit": z.mean(1),
        }
        for name in NAMES:
            column = getattr(into, name)
            if column is not None:
                column.copy_(found[name])
        top = x.amax(1)
        anchors.copy_(torch.stack([top, found["lse"] - top, found["logps"].expm1()], 1))


def gradient(
    raw: torch.Tensor, targets: torch.Tensor, anchors: torch.Tensor, out: torch.Tensor, reading: Any, *,
    factor: Any = None, bonus: Any = None, entropy: Any = None,
) -> torch.Tensor:  # fmt: skip
    check(raw, targets, anchors)
    assert out.shape == raw.shape and out.stride(1) == 1
    with paused():
        z = read(raw, reading)
        log_p = z / reading.temperature - anchors[:, :1].double() - anchors[:, 1:2].double()
        found = log_p.exp().scatter(1, targets[:, None], anchors[:, 2:].double())
        if factor is not None:
            found *= factor[:, None]
        if bonus is not None:
            spread = log_p.exp() * (log_p.clamp(min=-1e4) + entropy[:, None])
            found -= bonus[:, None] * spread
        if reading.softcap is not None:
            found *= 1 - (z / reading.softcap) ** 2
        return out.copy_(found)


def check(raw: torch.Tensor, targets: torch.Tensor, anchors: torch.Tensor) -> None:
    assert raw.dtype in (torch.float32, torch.bfloat16, torch.float16) and raw.stride(1) == 1
    assert anchors.shape == (len(raw), 3) and anchors.dtype == torch.float32 and anchors.is_contiguous()
    assert targets.shape == (len(raw),) and targets.dtype == torch.int64


def use_card(monkeypatch: pytest.MonkeyPatch, *, kernels: bool = True, mm: Any = emulated_mm) -> None:
    """Let the head take a CPU for a card, with the products and kernels above."""
    own = sys.modules[__name__]
    monkeypatch.setattr(products, "on_card", lambda device: True)
    monkeypatch.setattr(products, "_mm", mm)
    monkeypatch.setattr(head_trial, "on_card", lambda device: True)
    serves = (torch.float32, torch.bfloat16, torch.float16)
    chosen = lambda device, dtype: own if kernels and dtype in serves else None  # noqa: E731
    monkeypatch.setattr(head_module, "kernels_for", chosen)
    forget()


def forget() -> None:
    """What was found out about a device is found out again."""
    products._gives_float32.cache_clear()
    head_trial._are_right.cache_clear()


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """`use_card` for a test, and forgotten after it."""
    yield lambda **options: use_card(monkeypatch, **options)
    monkeypatch.undo()
    forget()
