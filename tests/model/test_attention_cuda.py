"""The attention for CUDA on an emulation of the two flash operators that it is made of, as PyTorch documents them.

Stretches are told apart by cumulative lengths; a causal call aligns the last query with the last key; log-sum-exps are
(heads, tokens) in float32 or wider; the backward takes output and log-sum-exp as given and recomputes exp(s - lse).
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from strop.model import attention_cuda
from strop.model.attention_dense import dense_attention
from strop.model.segments import Segments, Span


def stretches(cum_q: torch.Tensor, cum_k: torch.Tensor) -> Iterator[tuple[slice, slice]]:
    ends = zip(cum_q.tolist(), cum_q.tolist()[1:], cum_k.tolist(), cum_k.tolist()[1:], strict=False)
    for q0, q1, k0, k1 in ends:
        yield slice(q0, q1), slice(k0, k1)


def logits(query: torch.Tensor, key: torch.Tensor, causal: bool, scale: float) -> torch.Tensor:
    """(Hq, Lq, Lk), -inf where a query does not see a key."""
    shared = query.shape[1] // key.shape[1]
    found = torch.einsum("qhd,khd->hqk", query, key.repeat_interleave(shared, 1)) * scale
    if causal:
        seen = torch.ones(found.shape[1:]).tril(found.shape[2] - found.shape[1]).bool()
        found = found.masked_fill(~seen, -torch.inf)
    return found


def emulated_forward(
    query: Any, key: Any, value: Any, cum_q: Any, cum_k: Any, max_q: int, max_k: int, dropout: float,
    causal: bool, debug: bool, *, scale: float,
) -> Any:  # fmt: skip
    assert max_q == int(cum_q.diff().max()) and max_k == int(cum_k.diff().max()) and not dropout and not debug
    assert cum_q[-1] == len(query) and cum_k[-1] == len(key) == len(value)
    out, lse = torch.empty_like(query), query.new_empty(query.shape[1], len(query))
    for qs, ks in stretches(cum_q, cum_k):
        s = logits(query[qs], key[ks], causal, scale)
        values = value[ks].repeat_interleave(query.shape[1] // value.shape[1], 1)
        out[qs] = torch.einsum("hqk,khd->qhd", s.softmax(-1), values)
        lse[:, qs] = s.logsumexp(-1)
    return out, lse, torch.zeros(2), torch.zeros(0), torch.zeros(0)


def emulated_backward(
    grad: Any, query: Any, key: Any, value: Any, out: Any, lse: Any, cum_q: Any, cum_k: Any, max_q: int, max_k: int,
    dropout: float, causal: bool, seed: Any, unused: Any, *, scale: float,
) -> Any:  # fmt: skip
    assert lse.is_contiguous() and lse.shape == (query.shape[1], len(query)) and out.shape == query.shape
    d_query, d_key, d_value = (torch.zeros_like(x) for x in (query, key, value))
    shared = query.shape[1] // key.shape[1]
    for qs, ks in stretches(cum_q, cum_k):
        p = (logits(query[qs], key[ks], causal, scale) - lse[:, qs, None]).exp()  # of the given log-sum-exp
        keys, values = (x[ks].repeat_interleave(shared, 1) for x in (key, value))
        row = (grad[qs] * out[qs]).sum(-1).t()[..., None]  # (Hq, Lq, 1)
        ds = p * (torch.einsum("qhd,khd->hqk", grad[qs], values) - row) * scale
        d_query[qs] = torch.einsum("hqk,khd->qhd", ds, keys)
        for target, whole in ((d_key, torch.einsum("hqk,qhd->khd", ds, query[qs])),
                              (d_value, torch.einsum("hqk,qhd->khd", p, grad[qs]))):  # fmt: skip
            target[ks] = whole.view(len(whole), key.shape[1], shared, -1).sum(2)
    return d_query, d_key, d_value


@pytest.fixture(autouse=True)
def emulation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_cuda, "_forward", emulated_forward)
    monkeypatch.setattr(attention_cuda, "_backward", emulated_backward)


def laid_out(parents: list[int], lengths: list[int]) -> Segments:
    return Segments(list(map(Span, itertools.accumulate((0, *lengths)), lengths)), parents)


ROWS = {
    "one group": ([-1, 0, 0], [7, 3, 5]),
    "prompts of one token": ([-1, -1, 0, 0, 1, 1, 1], [1, 1, 1, 4, 2, 1, 1]),
    "groups, one of them deep, and roots": (
        [-1, -1, -1, -1, 0, 0, 1, 6, 7, 7, 6, 1],
        [5, 12, 9, 1, 2, 2, 3, 1, 4, 1, 5, 3],
    ),
    "nothing shared": ([-1, -1, -1], [6, 1, 11]),
}
HEADS = [(2, 2, 64), (4, 2, 64), (8, 1, 128), (4, 4, 256)]


def both(segments: Segments, query_heads: int, key_heads: int, size: int, seed: int = 0) -> list[Any]:
    """Outputs and gradients of the kernel and of the dense path, in float64."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *s: torch.randn(*s, generator=generator, dtype=torch.float64)  # noqa: E731
    tensors = [draw(1, heads, segments.total, size) for heads in (query_heads, key_heads, key_heads)]
    weight = draw(1, segments.total, query_heads, size)
    results = []
    for attention in (attention_cuda.cuda_flash_attention, dense_attention):
        inputs = [x.clone().requires_grad_() for x in tensors]
        out = attention(*inputs, segments, scale=size**-0.5)
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
