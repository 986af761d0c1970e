"""The attention for CUDA on an emulation of the two flash operators that it is made of, and the start-up test on it."""

from __future__ import annotations

import itertools
import logging
import random
from typing import Any

import pytest
import torch
from tests.support.flash_operators import FAULTS, RIGHT, FlashOperators

from strop.model import attention, attention_cuda, flash_implementation
from strop.model.attention_dense import dense_attention
from strop.model.segments import Segments, Span

CPU = torch.device("cpu")
KERNEL = attention_cuda.cuda_flash_attention


@pytest.fixture(autouse=True)
def emulation(monkeypatch: pytest.MonkeyPatch) -> None:
    emulate(RIGHT, monkeypatch)


def emulate(operators: FlashOperators, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_cuda, "_forward", operators.forward)
    monkeypatch.setattr(attention_cuda, "_backward", operators.backward)


def laid_out(parents: list[int], lengths: list[int]) -> Segments:
    return Segments(list(map(Span, itertools.accumulate((0, *lengths)), lengths)), parents)


ROWS = {
    "one group": ([-1, 0, 0], [7, 3, 5]),
    "a group of one": ([-1, 0], [4, 3]),
    "prompts of one token": ([-1, -1, 0, 0, 1, 1, 1], [1, 1, 1, 4, 2, 1, 1]),
    "many groups": ([-1] * 5 + [0, 1, 1, 2, 2, 2, 3, 4, 4], [3, 9, 1, 6, 2, 4, 1, 7, 3, 1, 1, 8, 2, 5]),
    "a group without completions": ([-1, -1, -1, 0, 0, 1], [5, 2, 8, 3, 1, 4]),
    "groups, one of them deep, and roots": (
        [-1, -1, -1, -1, 0, 0, 1, 6, 7, 7, 6, 1],
        [5, 12, 9, 1, 2, 2, 3, 1, 4, 1, 5, 3],
    ),
    "a chain": ([-1, 0, 1, 2, 3, 3, 2], [2, 3, 1, 4, 2, 1, 5]),
    "nothing shared": ([-1, -1, -1], [6, 1, 11]),
    "one row": ([-1], [9]),
    "one token": ([-1], [1]),
}
HEADS = [(2, 2, 64), (4, 2, 64), (8, 1, 128), (6, 2, 96), (4, 4, 256)]


def both(segments: Segments, query_heads: int, key_heads: int, size: int, seed: int = 0) -> list[Any]:
    """Outputs and gradients of the kernel and of the dense path, in float64."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *s: torch.randn(*s, generator=generator, dtype=torch.float64)  # noqa: E731
    tensors = [draw(1, heads, segments.total, size) for heads in (query_heads, key_heads, key_heads)]
    weight = draw(1, segments.total, query_heads, size)
    results = []
    for function in (KERNEL, dense_attention):
        inputs = [x.clone().requires_grad_() for x in tensors]
        out = function(*inputs, segments, scale=size**-0.5)
        results.append([out.detach(), *torch.autograd.grad(out, inputs, weight)])
    return results


@pytest.mark.parametrize(("query_heads", "key_heads", "size"), HEADS)
@pytest.mark.parametrize("name", ROWS)
def test_calls_and_merge_are_the_dense_attention(name: str, query_heads: int, key_heads: int, size: int) -> None:
    found, right = both(laid_out(*ROWS[name]), query_heads, key_heads, size)
    for a, b in zip(found, right, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def grown(rng: random.Random) -> list[int]:
    """Parents of a random forest: roots with children, roots without, and all others depth first."""

    def below(parent: int, depth: int) -> None:
        for _ in range(rng.randint(2, 3)):
            parents.append(parent)
            if depth and rng.random() < 0.5:
                below(len(parents) - 1, depth - 1)

    deep = rng.randint(0, 3)
    parents = [-1] * (deep + rng.randint(0 if deep else 1, 3))
    for root in range(deep):
        below(root, 3)
    return parents


def test_random_forests() -> None:
    for seed in range(25):
        rng = random.Random(seed)
        parents = grown(rng)
        found, right = both(laid_out(parents, [rng.randint(1, 9) for _ in parents]), 4, 2, 8, seed)
        for a, b in zip(found, right, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10, msg=lambda text, seed=seed: f"seed {seed}: {text}")


def test_rows_whose_heads_lie_apart_are_brought_together() -> None:
    """Some models give queries whose last axis is not the one that lies together."""
    segments = laid_out(*ROWS["one group"])
    inputs = [torch.randn(1, 8, segments.total, 2).transpose(1, 3).requires_grad_() for _ in range(3)]
    assert inputs[0].stride(-1) != 1
    out, right = (function(*inputs, segments, scale=0.3) for function in (KERNEL, dense_attention))
    torch.testing.assert_close(out, right)


# ---- the start-up test ----------------------------------------------------------------------------------------------

PRECISIONS = [torch.bfloat16, torch.float16, torch.float32]


SHAPES = [(torch.bfloat16, 64, 7), (torch.bfloat16, 128, 4), (torch.float16, 256, 1), (torch.float32, 256, 1)]


@pytest.mark.parametrize(("dtype", "size", "shared"), [*((dtype, 64, 2) for dtype in PRECISIONS), *SHAPES])
def test_right_operators_pass(dtype: torch.dtype, size: int, shared: int) -> None:
    assert attention.difference_to_dense(KERNEL, CPU, dtype, size, shared) == ""


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_an_operator_is_refused(fault: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    emulate(FAULTS[fault], monkeypatch)
    assert attention.difference_to_dense(KERNEL, CPU, dtype, 32, 2) != ""


@pytest.mark.parametrize(
    ("dtype", "query", "value", "served"),
    [
        (torch.bfloat16, 64, 64, True),
        (torch.float16, 256, 256, True),
        (torch.float32, 64, 64, False),
        (torch.bfloat16, 264, 264, False),
        (torch.bfloat16, 60, 60, False),
        (torch.bfloat16, 64, 128, False),
    ],
)
def test_what_the_kernel_takes(dtype: torch.dtype, query: int, value: int, served: bool) -> None:
    shapes = (torch.empty(1, 1, 1, size, dtype=dtype) for size in (query, value))
    assert attention_cuda.cuda_flash_serves(*shapes) is served


# ---- FlashAttention 3 and 4, behind the same operators --------------------------------------------------------------


class Card:
    """Queries and values of which it is said that they lie on a card, and FlashAttention 3 for the operators there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, third: FlashOperators | None) -> None:
        self.active: str | None = None
        self.third, self.patch = third, monkeypatch
        names = {"current": lambda: self.active, "activate": self.activate, "restore": self.restore}
        for name, function in names.items():
            monkeypatch.setattr(torch.nn.attention, f"{name}_flash_attention_impl", function, raising=False)
        monkeypatch.setattr(flash_implementation, "_refused", set())
        monkeypatch.setattr(flash_implementation, "_taken", set())
        attention._kernel_is_right.cache_clear()

    def activate(self, name: str) -> None:
        if self.third is None:
            raise ModuleNotFoundError("No module named 'flash_attn_interface'")
        self.active = name
        emulate(self.third, self.patch)

    def restore(self) -> None:
        self.active = None
        emulate(RIGHT, self.patch)

    def chosen(self) -> Any:
        monkey = torch.empty(1, 4, 3, 64, dtype=torch.bfloat16)
        self.patch.setattr(attention, "_on_cuda", lambda tensor: True)
        return attention._kernel(monkey, monkey[:, :2])


def test_flash_attention_3_is_taken_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(monkeypatch, RIGHT)
    flash_implementation.ask_for([None, "sdpa"])
    assert card.active is None and card.chosen() is KERNEL
    flash_implementation.ask_for([None, "flash_attention_3"])
    assert card.active == "FA3" and card.chosen() is KERNEL and card.active == "FA3"


def test_flash_attention_3_that_is_wrong_is_given_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    card = Card(monkeypatch, FAULTS["log-sum-exps of base 2"])
    flash_implementation.ask_for(["kernels-community/flash-attn3"])
    with caplog.at_level(logging.WARNING):
        assert card.chosen() is KERNEL  # PyTorch's own, which is right
    assert card.active is None and "FA3 was asked for and is not used" in caplog.text
    flash_implementation.ask_for(["flash_attention_3"])
    assert card.active is None


def test_flash_attention_3_that_is_not_installed_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    card = Card(monkeypatch, None)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            flash_implementation.ask_for(["flash_attention_3"])
    assert card.active is None and caplog.text.count("flash_attn_interface") == 1


def test_an_implementation_of_the_users_own_is_left_where_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    card = Card(monkeypatch, FAULTS["half the scale"])
    assert card.chosen() is KERNEL  # PyTorch's own, which passed
    card.activate("mine")
    with caplog.at_level(logging.WARNING):
        assert card.chosen() is None  # the dense path
    assert card.active == "mine" and "using the slower dense one" in caplog.text
