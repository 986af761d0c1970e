"""The fast kernels equal the dense path, and a kernel that does not is not used."""

from __future__ import annotations

import logging
from itertools import accumulate
from typing import Any

import pytest
import torch
from tests.support.random_trees import random_examples

from strop.errors import SetupError
from strop.model import attention, layout_of, score
from strop.model.attention_cpu import cpu_flash_attention
from strop.model.attention_dense import dense_attention
from strop.model.segments import Segments, Span
from strop.records import Example
from strop.testing.tiny import tiny_model

LENGTHS = (6, 1, 10, 1, 2, 3, 1, 1, 2, 1, 4, 3, 5)
PARENTS = (-1, -1, -1, -1, 0, 4, 5, 5, 4, 0, 0, 1, 1)


def row() -> Segments:
    """Two roots that fork, one of them three deep, and two stretches of their own; some of one token."""
    return Segments(list(map(Span, accumulate((0, *LENGTHS)), LENGTHS)), list(PARENTS))


def tensors(dtype: torch.dtype, heads: int, keys: int, width: int = 8) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(heads)
    shapes = ((1, heads, 40, width), (1, keys, 40, width), (1, keys, 40, width))
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


def run(function: Any, inputs: list[torch.Tensor], **options: Any) -> list[torch.Tensor]:
    out = function(*inputs, row(), scale=0.4, **options)
    weight = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).reshape(out.shape).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, inputs, weight)]


def by_hand(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int | None = None) -> torch.Tensor:
    """One softmax over one full mask, told from positions and ancestors."""
    segment, position = torch.zeros(40, dtype=torch.long), torch.zeros(40, dtype=torch.long)
    above = torch.eye(13, dtype=torch.bool)
    for number, (span, parent) in enumerate(zip(row().spans, PARENTS, strict=True)):
        before = 0 if parent < 0 else int(position[row().spans[parent].end - 1]) + 1
        segment[span.slice] = number
        position[span.slice] = torch.arange(before, before + span.length)
        if parent >= 0:
            above[number] |= above[parent]
    seen = above[segment[:, None], segment] & (position[:, None] >= position)
    if window is not None:
        seen &= position[:, None] - position < window
    repeats = query.shape[1] // key.shape[1]
    scores = 0.4 * query @ key.repeat_interleave(repeats, 1).transpose(2, 3)
    return (scores.masked_fill(~seen, -1e9).softmax(-1) @ value.repeat_interleave(repeats, 1)).transpose(1, 2)


@pytest.mark.parametrize("window", [None, 5])
def test_dense_is_attention_under_one_mask(window: int | None) -> None:
    inputs = tensors(torch.float64, 4, 2)
    expected = by_hand(*inputs, window=window)
    out = dense_attention(*inputs, row(), scale=0.4, window=window)
    assert torch.allclose(out, expected, atol=1e-12)


def test_dense_softcap_and_sinks_change_the_scores() -> None:
    query, key, value = tensors(torch.float64, 2, 2)
    sinks = torch.tensor([0.5, -1.0], dtype=torch.float64)
    out = dense_attention(query, key, value, row(), scale=0.4, softcap=1.5, sinks=sinks)
    # The segment 7..16 by hand.
    part = slice(7, 17)
    scores = torch.tanh(0.4 * query[:, :, part] @ key[:, :, part].transpose(2, 3) / 1.5) * 1.5
    scores = scores.masked_fill(~torch.ones(10, 10).tril().bool(), -1e9)
    weights = torch.cat([scores, sinks.view(1, 2, 1, 1).expand(1, 2, 10, 1)], -1).softmax(-1)[..., :10]
    assert torch.allclose(out[:, part], (weights @ value[:, :, part]).transpose(1, 2), atol=1e-12)


@pytest.mark.parametrize(("heads", "keys"), [(4, 4), (4, 2), (3, 1)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_cpu_kernel_equals_dense(dtype: torch.dtype, heads: int, keys: int) -> None:
    inputs = tensors(dtype, heads, keys)
    wide = [x.detach().double().requires_grad_() for x in inputs]
    bound = 20 * torch.finfo(dtype).eps
    for fast, exact in zip(run(cpu_flash_attention, inputs), run(dense_attention, wide), strict=True):
        assert fast.dtype == dtype
        assert float((fast.double() - exact).norm() / exact.norm()) < bound


@pytest.mark.parametrize("fault", ["raises", "wrong gradient"])
def test_a_wrong_kernel_costs_speed_not_truth(
    fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def wrong(query: Any, key: Any, value: Any, segments: Any, *, scale: float) -> torch.Tensor:
        if fault == "raises":
            raise RuntimeError("operator changed")
        return cpu_flash_attention(query, key, value.detach(), segments, scale=scale) + 0 * value.sum()

    model, examples = tiny_model("llama"), random_examples(1, completions=(2, 3))
    expected = score(model, examples).logps
    monkeypatch.setattr(attention, "cpu_flash_attention", wrong)
    with caplog.at_level(logging.WARNING):
        assert torch.allclose(score(model, examples).logps, expected, atol=1e-10)
        score(model, examples)
    assert caplog.text.count("using the slower dense one") == 1


def skip_where_torch_fails(dtype: torch.dtype) -> None:
    """torch's own attention in half precision raises where ATEN_CPU_CAPABILITY hides what the processor has."""
    ones = torch.ones(1, 1, 64, 16, dtype=dtype, requires_grad=True)
    try:
        torch.nn.functional.scaled_dot_product_attention(ones, ones, ones, is_causal=True).sum().backward()
    except RuntimeError as error:
        pytest.skip(f"torch's attention in {dtype}: {error}")


HALF_AND_WIDE = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", HALF_AND_WIDE)
@pytest.mark.parametrize(("head_size", "shared"), [(16, 1), (64, 2), (128, 4), (256, 8)])
def test_the_self_test_passes_here(dtype: torch.dtype, head_size: int, shared: int) -> None:
    skip_where_torch_fails(dtype)
    attention._kernel_is_right.cache_clear()
    with torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert attention._kernel_is_right(cpu_flash_attention, torch.device("cpu"), dtype, head_size, shared)


def severed(*numbers: int) -> Any:
    """Attention to which some segments are roots."""

    def attention(query: Any, key: Any, value: Any, segments: Segments, *, scale: float) -> torch.Tensor:
        parents = [-1 if number in numbers else parent for number, parent in enumerate(segments.parents)]
        return dense_attention(query, key, value, Segments(segments.spans, parents), scale=scale)

    return attention


def longer_branch(query: Any, key: Any, value: Any, segments: Segments, *, scale: float) -> torch.Tensor:
    out = dense_attention(query, key, value, segments, scale=scale).clone()
    span = segments.spans[-2]
    out[:, span.slice] = out[:, span.slice] * 1.1
    return out


def not_a_number(query: Any, key: Any, value: Any, segments: Segments, *, scale: float) -> torch.Tensor:
    """Attention whose first token, and no other, is not a number."""
    hole = torch.zeros(segments.total, dtype=query.dtype).index_fill(0, torch.tensor([0]), torch.nan)
    return dense_attention(query, key, value, segments, scale=scale) + hole.view(1, -1, 1, 1)


FAULTS = {
    "blind past a block": lambda q, k, v, s, *, scale: dense_attention(q, k, v, s, scale=scale, window=256),
    "the first token is not a number": not_a_number,
    "half the scale": lambda q, k, v, s, *, scale: dense_attention(q, k, v, s, scale=scale / 2),
    "a scale that is a twentieth off": lambda q, k, v, s, *, scale: dense_attention(q, k, v, s, scale=scale * 1.05),
    "nothing shared": severed(*range(12)),
    "the last group without its prompt": severed(9, 10, 11),
    "the deepest fork without the prompt": severed(5),
    "no gradient of keys": lambda q, k, v, s, *, scale: dense_attention(q, k.detach(), v, s, scale=scale) + 0 * k.sum(),
    "one token off": longer_branch,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("fault", FAULTS)
def test_the_self_test_finds_faults_in_any_precision(fault: str, dtype: torch.dtype) -> None:
    skip_where_torch_fails(dtype)
    assert "relative error" in attention.difference_to_dense(FAULTS[fault], torch.device("cpu"), dtype)


def test_different_head_sizes_take_the_dense_path() -> None:
    query, key, _ = tensors(torch.float64, 2, 2)
    value = torch.randn(1, 2, 40, 4, dtype=torch.float64)
    out, _ = attention.tree_attention(torch.nn.Module(), query, key, value, None, 0.4, strop_segments=row())
    assert torch.allclose(out, by_hand(query, key, value), atol=1e-12)


def test_what_a_flat_row_cannot_give_is_refused() -> None:
    inputs = tensors(torch.float64, 2, 2)
    for options in ({"position_bias": inputs[0]}, {"is_causal": False}):
        with pytest.raises(SetupError, match="asks its attention for"):
            attention.tree_attention(torch.nn.Module(), *inputs, None, strop_segments=row(), **options)
    with pytest.raises(SetupError, match="a mask"):
        attention.tree_attention(torch.nn.Module(), *inputs, inputs[0], strop_segments=row())
    with pytest.raises(SetupError, match="without segments"):
        attention.tree_attention(torch.nn.Module(), *inputs, None)


def test_windows_are_reported_to_observers() -> None:
    model = tiny_model("gemma3")
    layout_of(model)  # looks for itself, once
    with attention.observed() as calls, attention.observed() as again:
        score(model, [Example([1, 2], [[3, 4], [5, 6]])], layout="tree")
    assert calls == again == [("attention", 8), ("attention", None)]


def test_longest_context_is_the_longest_way_down() -> None:
    assert row().longest_context == 12
    assert [span.start for span in row().spans] == [0, 6, 7, 17, 18, 20, 23, 24, 25, 27, 28, 32, 35]


def test_the_descendants_of_a_segment_are_one_call() -> None:
    calls = [(below.start, below.length, span.start) for below, span in row().crossings]
    assert calls == [(18, 14, 0), (32, 8, 6), (20, 7, 18), (23, 2, 20)]
